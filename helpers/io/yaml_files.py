"""Read YAML that people wrote: plain data, of a bounded size, with nothing guessed.

A file may come from anybody. Anchors (ten of ten unfold without end), tags, keys given twice and
deep nesting are refused; what YAML takes for something else than the text that stands there (`NO`,
`007`, `12:30`, a date) is kept apart as `Unquoted` where only text is wanted.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import UserError
from helpers.io.safe_text import visible

LARGEST = 1_000_000  # bytes; read in about a second
DEEPEST = 20  # lists and mappings inside each other
TEXT = "tag:yaml.org,2002:str"
AS_WRITTEN = re.compile(r"-?[1-9]\d*|0")  # whole numbers that read back as they were written


@dataclass(frozen=True)
class Unquoted:
    """A scalar that YAML does not read as the text that stands in the file.

    Attributes:
        text: As it stands there.
        kind: What YAML takes it for.
    """

    text: str
    kind: str

    def __str__(self) -> str:
        """`NO (which YAML reads as yes or no)`."""
        return f"{self.text or 'empty'} (which YAML reads as {self.kind})"


KINDS = {
    "bool": "yes or no",
    "int": "a number",
    "float": "a number",
    "timestamp": "a date",
    "null": "nothing",
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The safe loader, which refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            given = [self.construct_object(key, deep=True) for key, _ in node.value]
            for first, second in itertools.pairwise(sorted(map(str, given))):
                if first == second:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{visible(first)}' is given twice", node.start_mark
                    )
        return super().construct_mapping(node, deep=deep)


class _TextLoader(_Loader):
    """Scalars are text; a number that reads back as it was written passes as its text."""

    def construct_scalar_text(self, node):
        kind = node.tag.rpartition(":")[2]
        if kind == "int" and AS_WRITTEN.fullmatch(node.value):
            return node.value
        return Unquoted(node.value, KINDS[kind])


for _kind in KINDS:
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _TextLoader.construct_scalar_text)


def read_yaml(path: str | Path, *, what: str = "", text: bool = False) -> Any:
    """The content of a YAML file as plain data.

    Args:
        path: The file.
        what: What it is, for the sentence; by default its path alone.
        text: Scalars are wanted as text: one that is not comes as `Unquoted`.

    Raises:
        UserError: The file is not there, not readable, too large, or not YAML of that kind.
    """
    path, name = Path(path), f"{what} {path}".strip()
    name = visible(name)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{name} is no file: give the path of a YAML file.")
        if size > LARGEST:
            raise UserError(
                f"{name} has {size / 1e6:.1f} MB: a file of at most {LARGEST / 1e6:.0f} MB is read."
            )
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, UnicodeDecodeError):
            told = "is not text in UTF-8: save it in that encoding"
        else:
            told = f"cannot be read ({getattr(error, 'strerror', None) or error}): check the path"
        raise UserError(f"{name} {told}.") from None
    return parse_yaml(content, name, text=text)


def parse_yaml(content: str, name: str, *, text: bool = False) -> Any:
    """`content` as plain data; `name` says in sentences what it is. As `read_yaml`."""
    loader = _TextLoader if text else _Loader
    try:
        _check_events(content, name)
        return yaml.load(content, Loader=loader)
    except UserError:
        raise
    except Exception as error:  # whatever the parser's parts raise on text that nobody tamed
        told = " ".join(str(error).replace(' in "<unicode string>",', "").split())
        told = visible(told)[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{name} is not valid YAML: {told}.") from None


def _check_events(content: str, name: str) -> None:
    """Refuse what a file for people does not need, before anything is built from it."""
    depth = 0
    for event in yaml.parse(content, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(
                f"{name} uses an anchor ('&' or '*'), which is not read here: write the text out, "
                "or put it in quotes."
            )
        if getattr(event, "tag", None) not in (None, TEXT, "!") and not isinstance(
            event, yaml.DocumentStartEvent
        ):
            raise UserError(
                f"{name} uses the tag '{visible(event.tag)}', which is not read here: leave it "
                "away, or put the text in quotes."
            )
        depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        if depth > DEEPEST:
            raise UserError(f"{name} is nested more than {DEEPEST} deep: write it flatter.")
