"""Reading of YAML that people wrote: plain data, of a bounded size, with nothing guessed.

A file may come from anybody. Anchors (ten of ten unfold without end), tags, repeated keys and deep
nesting are refused. Where only text is allowed, a scalar that YAML reads as something else (`NO`,
`007`, `12:30`, a date) is returned as `Unquoted`.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import UserError
from helpers.io.safe_text import visible

MAX_BYTES = 1_000_000  # read in about a second
MAX_DEPTH = 20  # lists and mappings inside each other
TEXT = "tag:yaml.org,2002:str"
AS_WRITTEN = re.compile(r"-?[1-9]\d*|0")  # whole numbers that read back as they were written


@dataclass(frozen=True)
class Unquoted:
    """A scalar without quotes that YAML does not read as text.

    Attributes:
        text: The scalar as it is written in the file.
        kind: In words, the type that YAML gives it.
    """

    text: str
    kind: str

    def __str__(self) -> str:
        """Show text and kind, such as `NO (which YAML reads as yes or no)`."""
        return f"{self.text or 'empty'} (which YAML reads as {self.kind})"


KINDS = {
    "bool": "yes or no",
    "int": "a number",
    "float": "a number",
    "timestamp": "a date",
    "null": "nothing",
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, with an error for a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for first, second in itertools.pairwise(sorted(map(str, keys))):
                if first == second:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{visible(first)}' is given twice", node.start_mark
                    )
        return super().construct_mapping(node, deep=deep)


class _TextLoader(_Loader):
    """A loader that returns scalars as text; a whole number in its usual form counts as text."""

    def construct_scalar_text(self, node):
        kind = node.tag.rpartition(":")[2]
        if kind == "int" and AS_WRITTEN.fullmatch(node.value):
            return node.value
        return Unquoted(node.value, KINDS[kind])


for _kind in KINDS:
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _TextLoader.construct_scalar_text)


def read_yaml(path: str | Path, *, label: str = "", scalars_as_text: bool = False) -> Any:
    """Read a YAML file as plain data.

    Args:
        path: The file.
        label: Kind of the file, named before its path in error sentences.
        scalars_as_text: Return scalars as text, and one that YAML reads otherwise as `Unquoted`.

    Raises:
        UserError: The file is missing, unreadable, too large, or not YAML of that kind.
    """
    path, name = Path(path), f"{label} {path}".strip()
    name = visible(name)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{name} is no file: give the path of a YAML file.")
        if size > MAX_BYTES:
            limit = f"{MAX_BYTES / 1e6:.0f} MB"
            raise UserError(f"{name} has {size / 1e6:.1f} MB: a file of at most {limit} is read.")
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, UnicodeDecodeError):
            problem = "is not text in UTF-8: save it in that encoding"
        else:
            cause = getattr(error, "strerror", None) or error
            problem = f"cannot be read ({cause}): check the path"
        raise UserError(f"{name} {problem}.") from None
    return parse_yaml(content, name, scalars_as_text=scalars_as_text)


def parse_yaml(content: str, name: str, *, scalars_as_text: bool = False) -> Any:
    """Parse YAML as plain data.

    Args:
        content: The YAML.
        name: What the content is, for error sentences.
        scalars_as_text: Return scalars as text, and one that YAML reads otherwise as `Unquoted`.

    Raises:
        UserError: The content is not YAML of that kind.
    """
    loader = _TextLoader if scalars_as_text else _Loader
    try:
        _check_events(content, name)
        return yaml.load(content, Loader=loader)
    except UserError:
        raise
    except Exception as error:  # on arbitrary text the parser raises errors of many kinds
        cause = " ".join(str(error).replace(' in "<unicode string>",', "").split())
        cause = visible(cause)[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{name} is not valid YAML: {cause}.") from None


def _check_events(content: str, name: str) -> None:
    """Refuse anchors, tags and deep nesting before any object is built."""
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
        if depth > MAX_DEPTH:
            raise UserError(f"{name} is nested more than {MAX_DEPTH} deep: write it flatter.")
