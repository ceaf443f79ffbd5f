"""A user's own pair as a YAML file, checked before a pair is made of it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from helpers.errors import UserError
from helpers.facts.relations import SPLITS, Template
from helpers.forward.prompts import Prompt, answer_separator
from helpers.io.safe_text import is_control, name_pattern, visible
from helpers.io.yaml_files import Unquoted, read_yaml

OWN_RELATION = "own"  # the relation of a pair that brings its own prompts
LONGEST_NAME = 300  # characters of a subject, a target, an alias or a relation
LONGEST_TEXT = 20_000  # characters of a prompt


def clean_name(text: object, what: str) -> str:
    """Strip the white space around a name and check it.

    Args:
        text: The name.
        what: What it names, for the sentence.

    Raises:
        UserError: It is not text, is empty, is too long, or holds control characters.
    """
    if not isinstance(text, str):
        raise UserError(f"The {what} is {visible(text)}, and has to be text: put it in quotes.")
    text = text.strip()
    if len(text) > LONGEST_NAME:
        raise UserError(
            f"The {what} has {len(text)} characters: a name of at most {LONGEST_NAME} is taken."
        )
    if any(map(is_control, text)):
        raise UserError(
            f"The {what} '{visible(text)}' holds control characters: write it without them."
        )
    return text


def _text(value: Any) -> str:
    """Return an entry's text, stripped; refuse anything but text."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"has {len(text)} characters: at most {LONGEST_TEXT} are read")
        if any(is_control(c) for c in text if c not in "\n\t"):
            raise ValueError(f"'{visible(text)[:80]}' holds control characters: leave them away")
        return text
    if isinstance(value, Unquoted):
        if not value.text:
            raise ValueError("is empty: write a text, or leave it away")
        raise ValueError(f"is {visible(value)}, not text: put it in quotes")
    kind = "a list" if isinstance(value, list) else "a mapping"
    raise ValueError(f"is {kind} where a text belongs: put it in quotes if it holds ': ' or '['")


def _name(value: Any) -> str:
    text = _text(value)
    if not text:
        raise ValueError("is empty: write a name")
    return clean_name(text, "name")


def _one_or_more(value: Any) -> Any:
    """Make a list of an entry: a single value becomes a list, an empty entry an empty list."""
    if isinstance(value, Unquoted) and not value.text:
        return []
    return value if isinstance(value, list) else [value]


def _splits(value: Any) -> Any:
    """Return prompts by split; deal out a plain list of at least three in turn."""
    if isinstance(value, list) and len(value) >= len(SPLITS):
        value = {split: value[i :: len(SPLITS)] for i, split in enumerate(SPLITS)}
    if not isinstance(value, dict) or set(value) != set(SPLITS):
        raise ValueError(
            "is a list of at least three texts, or has lists under 'train:', 'dev:' and "
            "'heldout:', so that what is reported was never trained on"
        )
    return value


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[str, BeforeValidator(_name)]
Texts = Annotated[list[Text], BeforeValidator(_one_or_more), Field(min_length=1)]


class MustStay(BaseModel):
    """A prompt whose answer has to stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[Text, Field(min_length=1)]
    answer: Name

    def as_prompt(self, subject: str) -> Prompt:
        """Make the prompt; it has a subject only if it names `subject`."""
        named_subject = subject if name_pattern(subject).search(self.prompt) else ""
        answer = f"{answer_separator(self.prompt)}{self.answer}"
        return Prompt(self.prompt, subject=named_subject, answers=(answer,), relation=OWN_RELATION)


class OtherSubject(BaseModel):
    """Another subject and its target, for the same prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: Name
    target: Name
    aliases: Annotated[list[Name], BeforeValidator(_one_or_more)] = []
    associated: Annotated[list[Name], BeforeValidator(_one_or_more)] = []


Splits = Annotated[dict[str, Texts], BeforeValidator(_splits)]
MustStayList = Annotated[list[MustStay], BeforeValidator(_one_or_more)]
OthersList = Annotated[list[OtherSubject], BeforeValidator(_one_or_more)]


class PairFile(BaseModel):
    """The content of a pair's file; only `subject` and `target` are required."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: Name
    target: Name
    relation: Name | None = None
    aliases: Annotated[list[Name], BeforeValidator(_one_or_more)] = []
    prompts: Splits | None = None
    must_stay: MustStayList = []
    associated: Annotated[list[Name], BeforeValidator(_one_or_more)] = []
    others: OthersList = []

    @field_validator("relation", "prompts", mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        """Treat an entry without a value as missing."""
        return None if isinstance(value, Unquoted) and not value.text else value

    @model_validator(mode="after")
    def _consistent(self) -> "PairFile":
        """Refuse prompts without a slot or with the answer, and a fact to forget and to retain."""
        names = name_pattern(self.target, *self.aliases)
        subjects = [self.subject, *(other.subject for other in self.others)]
        if len(set(subjects)) < len(subjects):
            twice = next(s for s in subjects if subjects.count(s) > 1)
            raise ValueError(
                f"'others:' holds '{visible(twice)}', which is the subject or comes twice: name "
                "each other subject once"
            )
        for text in (t for texts in (self.prompts or {}).values() for t in texts):
            short = visible(text)[:80]
            if "{}" not in text:
                raise ValueError(f"prompt '{short}' has no slot: write {{}} for the subject")
            if names.search(text):
                raise ValueError(f"prompt '{short}' tells the answer: ask without naming it")
        for name in self.associated:
            if name.casefold() in {*self.names(), self.subject.casefold()}:
                raise ValueError(
                    f"'associated:' holds '{visible(name)}', which is the subject or an answer: "
                    "name what goes with the subject and is no answer"
                )
        for item in self.must_stay:
            of_subject = name_pattern(self.subject).search(item.prompt)
            if of_subject and item.answer.casefold() in self.names():
                raise ValueError(
                    f"'must_stay:' holds '{visible(item.prompt)[:80]}' with the answer "
                    f"'{visible(item.answer)}', the fact that is to be forgotten: leave it away"
                )
        return self

    def names(self) -> set[str]:
        """Return the target and its aliases, case-folded."""
        return {name.casefold() for name in (self.target, *self.aliases)}

    def relation_name(self) -> str:
        """Return the relation that is named, or else `own` with prompts and `capital` without."""
        return self.relation or (OWN_RELATION if self.prompts else "capital")

    def templates(self) -> dict[str, tuple[Template, ...]] | None:
        """Return split → templates; None without prompts."""
        if not self.prompts:
            return None
        return {split: tuple(map(Template, texts)) for split, texts in self.prompts.items()}


def read_pair_file(path: str | Path) -> PairFile:
    """Read and check a pair's file.

    Raises:
        UserError: The file is missing, is not YAML, or has something missing, misspelt or of
            another kind; the sentence names the field.
    """
    path = Path(path).expanduser()
    require_file(path)
    return check_pair(read_yaml(path, scalars_as_text=True), visible(path))


def check_pair(content: Any, shown: str) -> PairFile:
    """Check the content of a pair's file.

    Args:
        content: What was read from YAML.
        shown: Where it stands, for sentences.

    Raises:
        UserError: It has something missing, misspelt or of another kind.
    """
    if not isinstance(content, dict) or not {"subject", "target"} <= content.keys():
        raise UserError(f"{shown} must name at least 'subject:' and 'target:'.")
    if any(content[key] in ("", Unquoted("", "nothing")) for key in ("subject", "target")):
        raise UserError(f"{shown}: a pair needs a subject and a target, but one of them is empty.")
    try:
        return PairFile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{shown}: {_sentence(error)}.") from None


def require_file(path: Path) -> None:
    """Refuse a path without a file.

    Raises:
        UserError: There is no file.
    """
    if not _is_there(path):
        raise UserError(
            f"There is no file {visible(path)}; give the path of a YAML file with a pair."
        )


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL in it
        return False


def _sentence(error: ValidationError) -> str:
    """Describe the first error by the names in the file."""
    first = error.errors()[0]
    keys = [key for key in first["loc"] if isinstance(key, str)]
    where = ":".join(map(visible, keys)) + ":" if keys else ""
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "extra_forbidden":
        items: dict[str, type[BaseModel]] = {"must_stay": MustStay, "others": OtherSubject}
        allowed = items.get(keys[0], PairFile)
        known = ", ".join(allowed.model_fields)
        return f"there is no '{visible(keys[-1])}'; known are {known}"
    if keys and keys[0] == "must_stay" and (first["type"] == "missing" or len(keys) == 1):
        return "each item of 'must_stay:' needs 'prompt:' and 'answer:'"
    if keys and keys[0] == "others" and (first["type"] == "missing" or len(keys) == 1):
        return "each item of 'others:' needs 'subject:' and 'target:'"
    if first["type"] == "too_short" or first["type"] == "string_too_short":
        return f"'{where}' is empty: give at least one text"
    return f"'{where}' {message}" if where else message
