"""zsRE: questions with paraphrases (Levy et al. 2017), in the form that editing papers use.

A row has `subject`, `src` (the question), `rephrase`, `answers` (right ones), and an unrelated
question `loc` with `loc_ans`, which must stay. Some files have `pred`, the relation.
"""

from collections.abc import Sequence
from pathlib import Path

from helpers.facts import ConceptPair
from helpers.requests.benchmarks.facts import facts_request, make_pair, stay_prompt
from helpers.requests.items import text_field, text_list
from helpers.requests.request import FactsRequest
from helpers.requests.rows import Row

FIELDS = "'subject', 'src' and 'answers'"
ASKED = "Question: {}\nAnswer:"
PREFIX = "nq question: "  # before unrelated questions, in files of editing papers


def read(paths: Sequence[Path]) -> FactsRequest:
    """Read zsRE's files; rows of a file whose name holds `retain` are other subjects.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return facts_request("zsre", paths, to_pairs, FIELDS)


def to_pairs(row: Row) -> list[ConceptPair]:
    """Make the pair of a row; none where a field is missing."""
    subject, questions = text_field(row, "subject"), [text_field(row, "src")]
    questions.append(text_field(row, "rephrase"))
    unrelated = text_field(row, "loc").removeprefix(PREFIX)
    stay = unrelated and stay_prompt(_asked(unrelated), text_list(row, "loc_ans"), subject)
    pair = make_pair(
        subject,
        text_list(row, "answers"),
        [_asked(question) for question in questions if question],
        relation=text_field(row, "pred"),
        must_stay=[stay] if stay else [],
    )
    return [pair] if pair else []


def _asked(question: str) -> str:
    """Put a question into its frame, with a question mark."""
    return ASKED.replace("{}", question if question.endswith("?") else f"{question}?")
