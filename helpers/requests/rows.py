"""Rows of JSON files and paragraphs of text files, read one after another from the disk.

A JSON file has one object a line, or is an array of objects. Only an array is read as a whole. All
text is UTF-8.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from helpers.errors import UserError
from helpers.io.safe_text import visible

Row = dict[str, Any]
"""An object of a JSON file."""

TEXT_ENDINGS = (".txt", ".md")
JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
MAX_ARRAY_BYTES = 300_000_000  # of a JSON array, which is parsed as a whole
N_NUMBERS = 3  # numbers of bad rows that a sentence names
MAX_LINE = 20_000_000  # characters of a row
MAX_PARAGRAPH = 100_000  # characters of a document; longer ones are cut at the end of a line
# The first bytes of files that are no text, with their kinds.
BINARY = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"ARROW1": "an Arrow file",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


def check_file(path: Path) -> None:
    """Refuse a file that is not there, is empty, or is of a kind that is not read.

    Raises:
        UserError: Says what was found and what is expected.
    """
    shown = visible(path)
    try:
        with path.open("rb") as file:
            first = file.read(8)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"{shown} cannot be read ({cause}): check the path.") from None
    if not first:
        raise UserError(f"{shown} is empty: give a file with at least one document.")
    for beginning, kind in BINARY.items():
        if first.startswith(beginning):
            raise UserError(f"{shown} is {kind}: save it as JSON lines or plain text, in UTF-8.")
    if path.suffix.lower() not in TEXT_ENDINGS + JSON_ENDINGS:
        raise UserError(
            f"{shown} ends in '{visible(path.suffix)}': documents are read from JSON lines or "
            f"arrays ({', '.join(JSON_ENDINGS)}) and from plain text ({', '.join(TEXT_ENDINGS)})."
        )


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends, at most `MAX_LINE` characters at a time.

    Raises:
        UserError: The file cannot be read, or is not text in UTF-8.
    """
    check_file(path)
    advice = "save it as text in UTF-8"
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(MAX_LINE)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise UserError(
                    f"{visible(path)} is not text in UTF-8 (byte {byte:#04x} at or after line "
                    f"{number}): {advice}."
                ) from None
            if not line:
                return
            if "\0" in line:
                raise UserError(
                    f"{visible(path)} holds a NUL character in line {number}, so it is binary or "
                    f"text in UTF-16: {advice}."
                )
            yield line.rstrip("\n")


def read_paragraphs(path: Path) -> Iterator[str]:
    """Yield the documents of a text file, which blank lines separate."""
    lines: list[str] = []
    size = 0
    for line in chain(read_lines(path), [""]):
        if line.strip():
            lines.append(line)
            size += len(line)
        if lines and (not line.strip() or size > MAX_PARAGRAPH):
            yield "\n".join(lines)
            lines, size = [], 0


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield number (from 1) and content of each row of a JSON file; a string is a row's `text`.

    Raises:
        UserError: The file cannot be read or is not JSON, or a row is no object.
    """
    for number, row in _numbered_values(path):
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            kind = {list: "a list", type(None): "null"}.get(type(row), "a number")
            raise UserError(
                f"Row {number} of {visible(path)} is {kind}: each row has to be an object with "
                "named fields."
            )
        yield number, row


def read_object(path: Path) -> Row | None:
    """Read a file that is a single JSON object, over any lines; None for a file of another form.

    Raises:
        UserError: The file cannot be read, or is not text in UTF-8.
    """
    check_file(path)
    if path.stat().st_size > MAX_ARRAY_BYTES:
        return None
    try:
        content = json.loads("\n".join(read_lines(path)))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _numbered_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the values of an array, or of one line after another."""
    for line in read_lines(path):
        if line.strip():
            is_array = line.lstrip().startswith("[")
            break
    else:
        raise UserError(f"{visible(path)} is empty: give a file with at least one row.")
    if not is_array:
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield number, _parsed(path, line, f"line {number}")
        return
    size = path.stat().st_size
    if size > MAX_ARRAY_BYTES:
        raise UserError(
            f"{visible(path)} is a JSON array of {size / 1e6:.0f} MB, which has to be read as a "
            f"whole: save it as JSON lines, which are read one by one, or keep it under "
            f"{MAX_ARRAY_BYTES / 1e6:.0f} MB."
        )
    values = _parsed(path, "\n".join(read_lines(path)), "the file")
    if not values:
        raise UserError(f"{visible(path)} is an empty list: give a file with at least one row.")
    yield from enumerate(values, 1)


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = visible(error)[:100]
        raise UserError(
            f"{visible(path)} is neither JSON lines nor a JSON array ({where}: {cause}): write one "
            "object a line."
        ) from None


def field_names(row: Row) -> str:
    """List the first fields of a row, for sentences."""
    names = ", ".join(f"'{visible(name)[:40]}'" for name in islice(row, 8))
    return names or "no fields"


@dataclass
class BadRows:
    """Rows of a file that lack a field.

    Attributes:
        path: The file, or the part of it that holds the rows, for the sentence.
        expected: The fields that a row has to have, for the sentence.
        first: Number and content of the first of them.
        n: How many there are.
    """

    path: Path | str
    expected: str
    first: list[tuple[int, Row]] = field(default_factory=list)
    n: int = 0

    def add(self, number: int, row: Row) -> None:
        """Count a row."""
        self.n += 1
        if len(self.first) < N_NUMBERS:
            self.first.append((number, row))

    def refuse(self, *, n_good: int) -> None:
        """Raise the sentence about the rows that were counted, if there are any.

        Args:
            n_good: Number of the file's other rows.

        Raises:
            UserError: There are some: it says how many, or of what format all are.
        """
        if not self.n:
            return
        shown, first = visible(self.path), self.first[0][1]
        if not n_good:
            raise UserError(
                f"The rows of {shown} have {field_names(first)}, and {self.expected} are expected "
                "and must not be empty."
            )
        numbers = ", ".join(str(number) for number, _ in self.first)
        more = ", …" if self.n > len(self.first) else ""
        raise UserError(
            f"{self.n} of {n_good + self.n} rows of {shown} lack a field or have it empty (row "
            f"{numbers}{more}): {self.expected} are expected, so complete these rows or leave them "
            "out."
        )
