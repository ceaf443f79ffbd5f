"""The one entry point for requests from files: a user's YAML file, or a benchmark's files."""

import re
from pathlib import Path

from helpers.errors import UserError
from helpers.io.choices import suggestion
from helpers.io.safe_text import visible
from helpers.requests.benchmarks import READERS
from helpers.requests.request import FactsRequest, TextRequest
from helpers.requests.request_file import read_request_file
from helpers.requests.rows import JSON_ENDINGS, TEXT_ENDINGS

SPEC = re.compile(r"([A-Za-z][\w-]*):(.+)", re.DOTALL)


def read_request(path_or_spec: str | Path) -> FactsRequest | TextRequest:
    """Read what is asked to be forgotten.

    Args:
        path_or_spec: A YAML file (`read_request_file`), or a benchmark's name and its files:
            `tofu:forget10.json,retain90.json`. The first file is to be forgotten; the names of the
            others say what they are (`helpers.requests.benchmarks.roles`).

    Raises:
        UserError: There is no such file or benchmark, or the content cannot be used.
    """
    text = str(path_or_spec)
    match = SPEC.fullmatch(text)
    if match and not _is_file(Path(text)):
        name, files = match[1].lower(), [part.strip() for part in match[2].split(",")]
        if name not in READERS:
            raise UserError(
                f"There is no reader for the benchmark '{visible(match[1])}'"
                f"{suggestion(name, sorted(READERS))}."
            )
        if not all(files):
            raise UserError(f"'{visible(text)}' names an empty file: leave the comma away.")
        return READERS[name]([Path(file).expanduser() for file in files])
    path = Path(text).expanduser()
    if path.suffix.lower() in JSON_ENDINGS + TEXT_ENDINGS:
        raise UserError(
            f"{visible(path)} does not say what it is: name it under 'forget:' in a YAML file, or "
            f"put a benchmark's name and a colon before it ({', '.join(sorted(READERS))})."
        )
    return read_request_file(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL in it
        return False
