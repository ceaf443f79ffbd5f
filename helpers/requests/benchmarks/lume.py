"""LUME: invented stories, invented people and real pages (Ramakrishna et al. 2025).

A row has `id`, `input`, `output` and `task`. An id that ends in `sc` and a number is a text to
complete, one in `qa` and a number a question. Files whose names hold `retain` have to stay.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from helpers.requests.benchmarks.roles import text_request
from helpers.requests.items import Item, text_field
from helpers.requests.request import TextRequest
from helpers.requests.rows import Row

FIELDS = "'id', 'input' and 'output'"
COMPLETION = re.compile(r"sc\d*$")


def read(paths: Sequence[Path]) -> TextRequest:
    """Read LUME's files.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return text_request("lume", paths, to_item, FIELDS)


def to_item(row: Row) -> Item | None:
    """Make the item of a row; None where a field is missing."""
    name, prompt, answer = (text_field(row, field) for field in ("id", "input", "output"))
    if not name or not prompt or not answer:
        return None
    kind = "completion" if COMPLETION.search(name) else "question"
    return Item(prompt=prompt, answers=(answer,), kind=kind)
