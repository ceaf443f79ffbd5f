"""Program code: Python's standard library, and NumPy's C headers, which every installation has."""

import functools
import importlib.resources
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers.errors import UserError
from helpers.io.choices import check_choice
from helpers.requests.corpus import Corpus, Document
from helpers.requests.splits import SPLITS, mixed, split_of

SIZES = range(200, 4001)  # characters of a definition: longer ones are mostly tables
# Folders of other people's packages, of tests, and of tables in the form of code.
LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}


def python_code(split: str) -> Corpus:
    """Return the functions and classes of Python's standard library, one document each.

    Definitions of one file are in the same split. The text is that of the running Python, so it
    differs a little between its versions.

    Args:
        split: `train`, `dev` or `heldout`.

    Raises:
        UserError: There is no such split; when read, that Python's source is not there.
    """
    check_choice("split", split, SPLITS)
    return _corpus("python", _definitions, split)


def c_code(split: str) -> Corpus:
    """Return stretches of NumPy's C headers between blank lines, one document each.

    Stretches of one file are in the same split.

    Args:
        split: `train`, `dev` or `heldout`.

    Raises:
        UserError: There is no such split.
    """
    check_choice("split", split, SPLITS)
    return _corpus("c", _declarations, split)


def _corpus(name: str, texts: Callable[[], dict[str, str]], split: str) -> Corpus:
    def read() -> Iterator[Document]:
        return (Document(text) for text, of_split in texts().items() if of_split == split)

    return Corpus(name, read)


@functools.cache
def _definitions() -> dict[str, str]:
    """Map the definitions at the outermost level, two blank lines apart (PEP 8), to their split."""
    files = _files(Path(sysconfig.get_path("stdlib")), "*.py")
    definitions = _blocks(files, r"\n{3,}", begins=r"@|class |def |async def ")
    if not definitions:
        raise UserError(
            "The source of Python's standard library is not installed, so there is no text of the "
            "capability 'python': use a Python that has its library as .py files."
        )
    return definitions


@functools.cache
def _declarations() -> dict[str, str]:
    """Map stretches of headers that do not begin with a comment to their split."""
    folder = Path(str(importlib.resources.files("numpy"))) / "_core" / "include" / "numpy"
    return _blocks(_files(folder, "*.h"), r"\n{2,}", begins=r"(?!\s*(/\*|\*))")


def _blocks(files: Iterator[tuple[str, str]], between: str, *, begins: str) -> dict[str, str]:
    """Cut files where a pattern matches; map each text, in a mixed order, to its file's split.

    A text that several files share is in the split of the first alone.
    """
    splits: dict[str, str] = {}
    for name, content in files:
        for block in re.split(between, content):
            if len(block) in SIZES and re.match(begins, block):
                splits.setdefault(block.strip("\n"), split_of(name))
    return {text: splits[text] for text in mixed(splits)}


def _files(folder: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each file, in the order of the names."""
    for path in sorted(folder.rglob(pattern)):
        name = path.relative_to(folder)
        if not LEFT_OUT & set(name.parts[:-1]):
            yield name.as_posix(), path.read_text(encoding="utf-8", errors="ignore")
