"""RWKU: well-known people, with passages about them and probes of several levels (Jin et al. 2024).

Passages have `text`, probes `query` and `answer`. A probe of level 1 (`level`) has a blank to fill,
the others are questions; where `level` is missing, `___` in the query tells. Files whose names hold
`neighbor`, `retain` or `utility` have to stay. The names of fields are those of its description;
other releases may differ.
"""

from collections.abc import Sequence
from pathlib import Path

from helpers.requests.benchmarks.roles import text_request
from helpers.requests.items import Item, question_item, text_field
from helpers.requests.request import TextRequest
from helpers.requests.rows import Row

FIELDS = "'text', or 'query' and 'answer'"
CLOZE_LEVEL = "1"
FILL_IN = "Fill in the blank. "


def read(paths: Sequence[Path]) -> TextRequest:
    """Read RWKU's files.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return text_request("rwku", paths, to_item, FIELDS)


def to_item(row: Row) -> Item | None:
    """Make the item of a row; None where a field is missing."""
    if text := text_field(row, "text"):
        return Item(text)
    item = question_item(row, "query", "answer")
    if item and ("___" in item.prompt or text_field(row, "level") == CLOZE_LEVEL):
        return Item(prompt=f"{FILL_IN}{item.prompt}", answers=item.answers, kind=item.kind)
    return item
