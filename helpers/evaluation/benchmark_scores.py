"""Scores of a user's benchmark files, as the benchmarks define them, where one model is enough.

Forget quality and PrivLeak compare with a retrained model, so they are not here: see
`helpers.evaluation.tofu_attacks.against_retrained` and `helpers.evaluation.retrained`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.metrics.memorization import exact_memorisation, likeliest_matches
from helpers.evaluation.tofu_scores import (
    CHOICE_FILES,
    FILES,
    FORGET,
    WORD,
    answer_scores,
    common_words,
    model_utility,
    rouge_l_recall,
)
from helpers.forward.generation import greedy
from helpers.forward.prompts import Prompt
from helpers.forward.scoring import answer_logprobs
from helpers.io.request_spec import split_spec
from helpers.io.safe_text import name_pattern
from helpers.models.tokenization import encode
from helpers.requests import FactsRequest, TextRequest, read_request
from helpers.requests.benchmarks import CONCEPT_READERS, READERS, lume, muse, rwku, wmdp
from helpers.requests.benchmarks.benchmark_test import (
    CHOICE,
    GO,
    SAID,
    STAY,
    TOKENS,
    BenchmarkTest,
    evenly,
)
from helpers.requests.benchmarks.fact_tests import FACT_TESTS
from helpers.requests.benchmarks.roles import role_of
from helpers.requests.benchmarks.tofu import perturbed_questions
from helpers.requests.items import LETTERS, Convert, ItemFile
from helpers.stats.intervals import format_interval, mean_interval

MAX_NEW_TOKENS = 64  # of a generated answer; it is as long as the longest right one, up to this
RECALL, F1, EXACT = "ROUGE-L recall", "ROUGE-L F1", "exact match"
PROBABILITY, TRUTH_RATIO, UTILITY = "P(answer) a token", "truth ratio", "model utility"


@dataclass(frozen=True)
class TextBenchmark:
    """A benchmark of documents and questions.

    Attributes:
        to_item: Makes the item of a row.
        question: The figure of its questions.
        completion: The figure of its texts to complete.
    """

    to_item: Convert
    question: str
    completion: str


# MUSE: Shi et al. 2024, section 3; WMDP: Li et al. 2024, section 3; RWKU: Jin et al. 2024, section
# 4; LUME: Ramakrishna et al. 2025, section 3.
TEXT_BENCHMARKS = {
    "lume": TextBenchmark(lume.to_item, EXACT, RECALL),
    "muse": TextBenchmark(muse.to_item, F1, F1),
    "rwku": TextBenchmark(rwku.to_item, RECALL, RECALL),
    "wmdp": TextBenchmark(wmdp.to_item, CHOICE, CHOICE),
}


def benchmark_of(spec: str) -> str:
    """Return the benchmark that a request names, in lower case; empty for a file of one's own."""
    name = split_spec(spec)[0].partition("@")[0].lower()
    return name if name in {*READERS, *CONCEPT_READERS} else ""


def benchmark_scores(model: LanguageModel, spec: str, *, n_questions: int = 20) -> pd.DataFrame:
    """Score a model on the questions of a benchmark's files.

    Args:
        model: The model with the edits that it carries.
        spec: The benchmark and its files, as `read_request` takes them.
        n_questions: Questions of each file or kind, evenly spaced; fewer where there are fewer.

    Returns:
        One row a question and figure: test (the file or kind of question), must (`go` or `stay`),
        figure, question (its number), value. Empty where the files hold no questions.

    Raises:
        UserError: The request names no benchmark, or a file is of another format.
    """
    benchmark = benchmark_of(spec)
    if not benchmark:
        raise UserError(
            "A file of your own has no benchmark's scores: put the benchmark's name and a colon "
            f"before its files ({', '.join(sorted([*READERS, *CONCEPT_READERS]))})."
        )
    paths = [Path(part.strip()).expanduser() for part in split_spec(spec)[1].split(",")]
    request = read_request(spec)  # refuses files that cannot be used
    if benchmark == "tofu":
        return _tofu(model, paths, n_questions)
    if benchmark in FACT_TESTS:
        tests = FACT_TESTS[benchmark](paths)
    elif benchmark in TEXT_BENCHMARKS:
        tests = _tests_of_items(TEXT_BENCHMARKS[benchmark], paths)
    else:
        tests = _tests_of_questions(request)
    columns = ["test", "must", "figure", "question", "value"]
    rows = []
    for test in (test.evenly(n_questions) for test in tests if test.prompts):
        values = FIGURES[test.figure](model, test)
        rows += [(test.name, test.must, test.figure, i, float(v)) for i, v in enumerate(values)]
    return pd.DataFrame(rows, columns=columns)


def compared(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put the mean figures of several models side by side.

    Args:
        scores: Model → its scores, from `benchmark_scores`.

    Returns:
        One row a test and figure: test, must, figure, n (questions), and a column a model: the
        mean with its 95 % interval by Student's t. TOFU's model utility is one number a model.
    """
    by = ["test", "must", "figure"]
    columns = {
        name: table.groupby(by, sort=False)["value"].agg(_mean_and_interval)
        for name, table in scores.items()
    }
    sizes = next(iter(scores.values())).groupby(by, sort=False)["value"].size()
    return pd.DataFrame({"n": sizes, **columns}).reset_index()


def _mean_and_interval(values: pd.Series) -> str:
    metric = mean_interval(values.to_numpy())
    return format_interval(metric.value, metric.low, metric.high)


def _tofu(model: LanguageModel, paths: Sequence[Path], n_questions: int) -> pd.DataFrame:
    """Score TOFU's files: Maini et al. 2024, section 2.2; model utility where all four are there.

    The truth ratio needs a perturbed file, and so does the probability of a choice.
    """
    tables = []
    for number, path in enumerate(paths):
        role = role_of(path, is_first=number == 0)
        name = next((name for name in FILES if name in path.stem), role)
        questions = evenly(perturbed_questions(path, needs_wrong=False), n_questions)
        scores = answer_scores(model, questions, is_choice=name in CHOICE_FILES)
        test = BenchmarkTest(name, "", RECALL, tuple(q.prompt for q in questions))
        scores = scores.assign(rouge=_rouge_recall(model, test))
        tables.append(scores.assign(file=FORGET if role == "forget" else name, test=path.stem))
    scores = pd.concat(tables, ignore_index=True)
    scores["question"] = scores.groupby("test").cumcount()
    scores["must"] = np.where(scores["file"] == FORGET, GO, STAY)
    names = {"probability": PROBABILITY, "rouge": RECALL, "truth_ratio": TRUTH_RATIO}
    long = scores.rename(columns=names).melt(
        ["test", "must", "question"], [*names.values()], var_name="figure"
    )
    order = {path.stem: number for number, path in enumerate(paths)}
    long = long.dropna(subset="value").sort_values(
        "test", key=lambda names: names.map(order), kind="stable"
    )
    if set(FILES) == set(scores["file"]) and scores["truth_ratio"].notna().all():
        utility = model_utility(scores)
        row = {"test": "all that stays", "must": STAY, "figure": UTILITY, "question": 0}
        long = pd.concat([long, pd.DataFrame([row | {"value": utility}])], ignore_index=True)
    return long[["test", "must", "figure", "question", "value"]]


def _tests_of_items(benchmark: TextBenchmark, paths: Sequence[Path]) -> list[BenchmarkTest]:
    """Make the tests of files of items: their questions in the first wording, as methods see it."""
    tests = []
    for number, path in enumerate(paths):
        must = GO if role_of(path, is_first=number == 0) == "forget" else STAY
        items = list(ItemFile(path, benchmark.to_item, ""))
        for kind, figure in (
            ("question", benchmark.question),
            ("completion", benchmark.completion),
        ):
            prompts = tuple(item.asked("train") for item in items if item.kind == kind)
            name = path.stem if figure == benchmark.question else f"{path.stem}, {kind}s"
            tests.append(BenchmarkTest(name, must, figure, prompts, _other_letters(prompts)))
    return tests


def _tests_of_questions(request: FactsRequest | TextRequest) -> list[BenchmarkTest]:
    """Make the tests of a request's questions, by letter or by what is said."""
    tests = []
    groups = {GO: request.questions, STAY: request.retained_questions}
    for must, questions in groups.items():
        chosen = tuple(q for q in questions if q.answers[0].strip() in LETTERS)
        opened = tuple(q for q in questions if q not in chosen)
        wrong = _other_letters(chosen)
        tests.append(BenchmarkTest("multiple choice", must, CHOICE, chosen, wrong))
        tests.append(BenchmarkTest("open questions", must, SAID, opened))
    return tests


def _other_letters(prompts: Sequence[Prompt]) -> tuple[tuple[str, ...], ...]:
    """Return the letters of the wrong choices of each prompt, with the right one's space."""
    rights = [prompt.answers[0] for prompt in prompts]
    return tuple(
        tuple(right.replace(right.strip(), x) for x in LETTERS if x != right.strip())
        for right in rights
    )


def _generated(model: LanguageModel, test: BenchmarkTest) -> list[str]:
    """Generate the answers: the first line to a question, the whole text of a completion."""
    lengths = [len(encode(model.tokenizer, p.answers[0])) for p in test.prompts]
    n_tokens = min(MAX_NEW_TOKENS, max(lengths))
    texts = greedy(model, test.prompts, max_new_tokens=n_tokens)
    return [
        text.strip().partition("\n")[0] if prompt.format == "question" else text.strip()
        for text, prompt in zip(texts, test.prompts, strict=True)
    ]


def _rouge_recall(model: LanguageModel, test: BenchmarkTest) -> Float[np.ndarray, " n"]:
    said = zip(_generated(model, test), test.prompts, strict=True)
    return np.array([rouge_l_recall(text, prompt.answers[0]) for text, prompt in said])


def _rouge_f1(model: LanguageModel, test: BenchmarkTest) -> Float[np.ndarray, " n"]:
    """Compute 2 · (common words in order) / (words of both texts), ROUGE-L's F1 (Lin 2004)."""
    values = []
    for text, prompt in zip(_generated(model, test), test.prompts, strict=True):
        words, wanted = (WORD.findall(t.casefold()) for t in (text, prompt.answers[0]))
        values.append(2 * common_words(words, wanted) / max(1, len(words) + len(wanted)))
    return np.array(values)


def _is_said(model: LanguageModel, test: BenchmarkTest) -> Float[np.ndarray, " n"]:
    """Return 1 where the generated text names the answer or an alias."""
    said = zip(_generated(model, test), test.prompts, strict=True)
    return np.array(
        [float(bool(name_pattern(*map(str.strip, p.answers)).search(text))) for text, p in said]
    )


def _is_exact(model: LanguageModel, test: BenchmarkTest) -> Float[np.ndarray, " n"]:
    """Return 1 where the generated answer has the words of a right one, and no others."""
    said = zip(_generated(model, test), test.prompts, strict=True)
    words = [
        (WORD.findall(t.casefold()), [WORD.findall(a.casefold()) for a in p.answers])
        for t, p in said
    ]
    return np.array([float(text in right) for text, right in words])


def _is_likeliest(model: LanguageModel, test: BenchmarkTest) -> Float[np.ndarray, " n"]:
    """Return 1 where the right answer is likelier than each wrong one."""
    flat = [
        (p, a) for p, w in zip(test.prompts, test.wrong, strict=True) for a in (p.answers[0], *w)
    ]
    logp = answer_logprobs(model, [p for p, _ in flat], [a for _, a in flat])
    ends = np.cumsum([1 + len(w) for w in test.wrong])[:-1]
    return np.array([float(of[0] > of[1:].max()) for of in np.split(logp, ends)])


def _right_tokens(model: LanguageModel, test: BenchmarkTest) -> Float[np.ndarray, " n"]:
    matches = likeliest_matches(model, test.prompts, [p.answers[0] for p in test.prompts])
    return np.array([exact_memorisation(of_answer) for of_answer in matches])


FIGURES: dict[str, Callable[[LanguageModel, BenchmarkTest], Float[np.ndarray, " n"]]] = {
    RECALL: _rouge_recall,
    F1: _rouge_f1,
    SAID: _is_said,
    EXACT: _is_exact,
    CHOICE: _is_likeliest,
    TOKENS: _right_tokens,
}
