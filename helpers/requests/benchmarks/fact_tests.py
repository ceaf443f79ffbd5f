"""Tests of the benchmarks of facts: their own questions, with the true answers.

These benchmarks were made for edits that write a new target. Here are those of their questions
whose answer is known where the true target is forgotten and no new one is written.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from helpers.forward.prompts import Prompt, answer_separator
from helpers.requests.benchmarks import ripple_edits
from helpers.requests.benchmarks.benchmark_test import (
    CHOICE,
    GO,
    SAID,
    STAY,
    TOKENS,
    BenchmarkTest,
)
from helpers.requests.benchmarks.facts import inner, objects, texts_of
from helpers.requests.benchmarks.roles import role_of
from helpers.requests.benchmarks.zsre import ASKED, PREFIX
from helpers.requests.items import text_field, text_list
from helpers.requests.rows import Row, read_rows

Question = tuple[str, str, str, Prompt, tuple[str, ...]]
"""A kind, what must become of its answers, its figure, the prompt, and wrong answers."""


def _rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of the files to forget."""
    for number, path in enumerate(paths):
        if role_of(path, is_first=number == 0) == "forget":
            yield from (row for _, row in read_rows(path))


def _prompt(text: str, answers: Sequence[str], form: str = "completion") -> Prompt:
    separator = answer_separator(text)
    return Prompt(text, answers=tuple(f"{separator}{a}" for a in answers if a), format=form)


def _asked(question: str) -> str:
    return ASKED.replace("{}", question if question.endswith("?") else f"{question}?")


def _counterfact(row: Row) -> Iterator[Question]:
    """Yield efficacy, paraphrases and neighbours: is the true target likelier than the new one?

    Meng et al. 2022, section 3.3: their efficacy and paraphrase scores are 1 minus these.
    """
    fact = inner(row, "requested_rewrite")
    true, new = (text_field(inner(fact, f"target_{x}"), "str") for x in ("true", "new"))
    if not new:
        return
    rewrite = text_field(fact, "prompt").replace("{}", text_field(fact, "subject"))
    for kind, must, texts in (
        ("the fact", GO, [rewrite]),
        ("paraphrases", GO, texts_of(row.get("paraphrase_prompts"))),
        ("neighbours", STAY, texts_of(row.get("neighborhood_prompts"))),
    ):
        for text in texts:
            prompt = _prompt(text, [true])
            yield kind, must, CHOICE, prompt, (f"{answer_separator(text)}{new}",)


def _zsre(row: Row) -> Iterator[Question]:
    """Yield the question, its paraphrase and the unrelated one, by the share of right tokens.

    Meng et al. 2022, section 3.2, on the true answer.
    """
    answers = text_list(row, "answers")
    unrelated = text_field(row, "loc").removeprefix(PREFIX)
    for kind, must, question, right in (
        ("the question", GO, text_field(row, "src"), answers),
        ("paraphrases", GO, text_field(row, "rephrase"), answers),
        ("unrelated questions", STAY, unrelated, text_list(row, "loc_ans")),
    ):
        if question and right:
            yield kind, must, TOKENS, _prompt(_asked(question), right), ()


def _mquake(row: Row) -> Iterator[Question]:
    """Yield the questions of several hops and those of one hop of a row, by what is said.

    Zhong et al. 2023, section 2.3, on the true answers. Their accuracy counts a row whose chain is
    answered in one of three wordings; here each wording is a question.
    """
    answers = (text_field(row, "answer"), *texts_of(row.get("answer_alias")))
    for question in texts_of(row.get("questions")) if answers[0] else ():
        yield "several hops", GO, SAID, _prompt(_asked(question), answers, "question"), ()
    forgotten = {text_field(f, "question") for f in objects(row.get("requested_rewrite"))}
    for hop in objects(row.get("single_hops")):
        question, answer = text_field(hop, "question"), text_field(hop, "answer")
        right = (answer, *texts_of(hop.get("answer_alias")))
        if question and answer:
            kind, must = ("the fact", GO) if question in forgotten else ("other hops", STAY)
            yield kind, must, SAID, _prompt(_asked(question), right, "question"), ()


def _ripple_edits(row: Row) -> Iterator[Question]:
    """Yield the fact, its subject's other names, and both kinds that must stay, by what is said.

    Cohen et al. 2024, section 4. The answers of logical generalisation and of both compositions
    are those under the new target, so they say nothing where none is written.
    """
    for pair in ripple_edits.to_pairs(row):
        (statement,) = pair.prompts("train")
        answers = tuple(answer.strip() for answer in pair.answers)
        yield "the fact", GO, SAID, _prompt(str(statement), answers), ()
        for query in ripple_edits.queries(row.get("Subject_Aliasing")):
            if text := text_field(query, "prompt"):
                yield "Subject_Aliasing", GO, SAID, _prompt(text, answers), ()
    for kind in ripple_edits.MUST_STAY:
        for query in ripple_edits.queries(row.get(kind)):
            text, right = text_field(query, "prompt"), ripple_edits.answers_of(query)
            if text and right:
                yield kind, STAY, SAID, _prompt(text, right), ()


def _tests(
    questions: Callable[[Row], Iterator[Question]],
) -> Callable[[Sequence[Path]], list[BenchmarkTest]]:
    """Return the function that collects the questions of files into tests, one a kind."""

    def collect(paths: Sequence[Path]) -> list[BenchmarkTest]:
        kinds: dict[tuple[str, str, str], list[tuple[Prompt, tuple[str, ...]]]] = {}
        for row in _rows(paths):
            for kind, must, figure, prompt, wrong in questions(row):
                kinds.setdefault((kind, must, figure), []).append((prompt, wrong))
        return [
            BenchmarkTest(*kind, tuple(p for p, _ in of_kind), tuple(w for _, w in of_kind))
            for kind, of_kind in kinds.items()
        ]

    return collect


FACT_TESTS: dict[str, Callable[[Sequence[Path]], list[BenchmarkTest]]] = {
    "counterfact": _tests(_counterfact),
    "mquake": _tests(_mquake),
    "rippleedits": _tests(_ripple_edits),
    "zsre": _tests(_zsre),
}
