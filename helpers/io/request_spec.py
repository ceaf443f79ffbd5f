"""The text that names a request: a file, or a reader and its files, as in `tofu:forget10.json`.

A reader of files that hold many concepts has one behind an `@`: `ember@Golf:open_questions.json`.
"""

import re
from pathlib import Path

SPEC = re.compile(r"([A-Za-z][\w-]*(?:@[^:]*)?):(.+)", re.DOTALL)


def split_spec(text: str, base: Path = Path()) -> tuple[str, str]:
    """Split a text into the reader and its paths, separated by commas.

    Args:
        text: A path, or a reader (with a concept), a colon and paths.
        base: The folder from which a relative path counts.

    Returns:
        The reader with its concept, or an empty text where the whole text names a file or has no
        reader; the rest.
    """
    match = SPEC.fullmatch(text)
    if match is None or _is_file(base / text):
        return "", text
    return match[1], match[2]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL in it
        return False
