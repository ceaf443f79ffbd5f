"""WMDP: corpora on dangerous topics, with questions of four choices (Li et al. 2024).

Corpora are rows with `text` (plain text is read too). Questions have `question`, `choices`, a list
of four, and `answer`, the index of the right one from 0; MMLU's have the same fields and stay, by
`mmlu` in their file's name. A question is scored by the letter of the right choice.
"""

from collections.abc import Sequence
from pathlib import Path

from helpers.requests.benchmarks.roles import text_request
from helpers.requests.items import LETTERS, Item, choice_item, text_field, text_list
from helpers.requests.request import TextRequest
from helpers.requests.rows import Row

FIELDS = "'text', or 'question', four 'choices' and 'answer' (an index from 0)"


def read(paths: Sequence[Path]) -> TextRequest:
    """Read WMDP's files.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return text_request("wmdp", paths, to_item, FIELDS)


def to_item(row: Row) -> Item | None:
    """Make the item of a row; None where a field is missing or of another kind."""
    if text := text_field(row, "text"):
        return Item(text)
    if (index := _index(row)) is None:
        return None
    return choice_item(text_field(row, "question"), text_list(row, "choices"), index)


def _index(row: Row) -> int | None:
    """Return the index of the right choice; None where the field holds no such index."""
    answer = row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(LETTERS):
        return answer
    return None
