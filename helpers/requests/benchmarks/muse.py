"""MUSE: news or books, with questions about them and passages to recite (Shi et al. 2024).

Corpora are plain text, or rows with `text`. `knowmem` files have `question` and `answer`, `verbmem`
files a `prompt` and `gt`, the passage that follows it. Files whose names hold `retain` have to
stay; those with `holdout` were never learned.
"""

from collections.abc import Sequence
from pathlib import Path

from helpers.requests.benchmarks.roles import text_request
from helpers.requests.items import Item, question_item, text_field
from helpers.requests.request import TextRequest
from helpers.requests.rows import Row

FIELDS = "'text', or 'question' and 'answer', or 'prompt' and 'gt'"


def read(paths: Sequence[Path]) -> TextRequest:
    """Read MUSE's files.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return text_request("muse", paths, to_item, FIELDS)


def to_item(row: Row) -> Item | None:
    """Make the item of a row; None where a field is missing."""
    if text := text_field(row, "text"):
        return Item(text)
    prompt, continuation = text_field(row, "prompt"), text_field(row, "gt")
    if prompt and continuation:
        return Item(prompt=prompt, answers=(continuation,), kind="completion")
    return question_item(row, "question", "answer")
