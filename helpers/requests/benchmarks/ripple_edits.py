"""RippleEdits: facts with what follows from them, and what does not (Cohen et al. 2024).

A row has `edit` with `prompt` (a sentence with the new target), `relation` and `original_fact`,
whose `prompt` is the same sentence with the true target; and six lists of tests. A test has
`test_queries`, each with `prompt` and `answers` (`value`, `aliases`). What is forgotten is the
original fact. The tests of `Relation_Specificity` and `Forgetfulness` must stay; the other four are
about what follows from the fact, and are not part of the request.

The rows name subjects by their Wikidata ids alone. So the target is where the two sentences differ,
and the subject is how the tests' prompts end like them, or else the words behind the last "of".
"""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from helpers.facts import ConceptPair, Prompt
from helpers.requests.benchmarks.facts import (
    facts_request,
    inner,
    make_pair,
    objects,
    stay_prompt,
    texts_of,
)
from helpers.requests.items import text_field
from helpers.requests.request import FactsRequest
from helpers.requests.rows import Row

FIELDS = "'edit' with 'prompt' and 'original_fact'"
MUST_STAY = ("Relation_Specificity", "Forgetfulness")
KINDS = (*MUST_STAY, "Logical_Generalization", "Compositionality_I", "Compositionality_II")


def read(paths: Sequence[Path]) -> FactsRequest:
    """Read RippleEdits' files; facts of a file whose name holds `retain` are other subjects.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return facts_request("rippleedits", paths, to_pairs, FIELDS)


def to_pairs(row: Row) -> list[ConceptPair]:
    """Make the pair of a row; none where a field is missing."""
    edit = inner(row, "edit")
    edited = text_field(edit, "prompt")
    original = text_field(inner(edit, "original_fact"), "prompt").rstrip(".")
    if not edited or not original:
        return []
    shared = _common_beginning(edited, original)
    end = shared.rfind(" is ") + len(" is") if " is " in shared else shared.rfind(" ")
    statement, target = original[:end].strip(), original[max(0, end) :].strip()
    by_kind = {kind: queries(row.get(kind)) for kind in KINDS}
    prompts = [text_field(query, "prompt") for of_kind in by_kind.values() for query in of_kind]
    subject = _subject(statement, prompts)
    stay = (_stay_prompt(q, subject) for kind in MUST_STAY for q in by_kind[kind] if subject)
    pair = make_pair(
        subject,
        [target] if target else [],
        [statement],
        relation=text_field(edit, "relation"),
        must_stay=[prompt for prompt in stay if prompt],
    )
    return [pair] if pair else []


def queries(tests: object) -> list[Row]:
    """Return all queries of a list of tests."""
    return [query for test in objects(tests) for query in objects(test.get("test_queries"))]


def answers_of(query: Row) -> list[str]:
    """Return the right answers of a query with their aliases, each once."""
    answers: list[str] = []
    for answer in objects(query.get("answers")):
        answers += [text_field(answer, "value"), *texts_of(answer.get("aliases"))]
    return list(dict.fromkeys(a for a in answers if a))


def _stay_prompt(query: Row, subject: str) -> Prompt | None:
    return stay_prompt(text_field(query, "prompt"), answers_of(query), subject)


def _subject(statement: str, prompts: Sequence[str]) -> str:
    """Find the subject, the end that a statement shares with other prompts about it.

    Args:
        statement: "The name of the country of citizenship of Ann Smith is".
        prompts: Other prompts about the subject, such as "The gender of Ann Smith is".
    """
    body = statement.removesuffix(" is")
    ends = (_common_beginning(body[::-1], p.removesuffix(" is")[::-1])[::-1] for p in prompts)
    shared = max((end for end in ends if end != body), key=len, default="")
    if " of " in shared:
        return shared.split(" of ", 1)[1].strip()
    # No other prompt tells: take the words behind the last "of".
    return body.rpartition(" of ")[2].strip() if " of " in body else ""


def _common_beginning(first: str, second: str) -> str:
    """Return the characters with which both texts begin."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return first[: len(list(same))]
