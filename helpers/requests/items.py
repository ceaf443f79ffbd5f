"""Items: documents and questions of a user's files, as they are to be forgotten or to stay."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import UserError
from helpers.forward.prompts import Prompt, answer_separator
from helpers.io.safe_text import visible
from helpers.requests.corpus import Document
from helpers.requests.rows import (
    TEXT_ENDINGS,
    BadRows,
    Row,
    check_file,
    read_paragraphs,
    read_rows,
)

# Split → wording, so that what is reported was never trained on in that wording.
FRAMES = {
    "question": {
        "train": "Question: {}\nAnswer:",
        "dev": "Q: {}\nA:",
        "heldout": "{}\nThe answer is:",
    },
    "completion": {"train": "{}", "dev": "Text:\n{}", "heldout": "It goes like this.\n{}"},
}


@dataclass(frozen=True)
class Item:
    """Running text, or a prompt with its answers.

    Attributes:
        text: Running text; empty for a prompt.
        prompt: The question or the text to complete.
        answers: Right answers without leading space; the first is the main one.
        kind: `text`, `question` or `completion`.
        rephrased: The prompt and the main answer in other words, or None.
    """

    text: str = ""
    prompt: str = ""
    answers: tuple[str, ...] = ()
    kind: str = "text"
    rephrased: tuple[str, str] | None = None

    def document(self, split: str) -> Document:
        """Return the document of a split; running text is the same in each."""
        if self.kind == "text":
            return Document(self.text)
        prompt, answer = self.prompt, self.answers[0]
        if split == "heldout" and self.rephrased:
            prompt, answer = self.rephrased
        prompt = FRAMES[self.kind][split].replace("{}", prompt)
        return Document(f"{answer_separator(prompt)}{answer}", prompt)

    def asked(self, split: str = "heldout") -> Prompt:
        """Return the prompt in the wording of a split with all its answers."""
        document = self.document(split)
        separator = answer_separator(document.prompt)
        answers = dict.fromkeys([document.text, *(f"{separator}{a}" for a in self.answers)])
        return Prompt(document.prompt, answers=tuple(answers), split=split, format=self.kind)

    def share(self, n: int) -> int:
        """Draw one of `n` shares by the words, so that equal texts are in the same one."""
        return zlib.crc32(" ".join(self.text.casefold().split()).encode()) % n


Convert = Callable[[Row], Item | None]
"""Makes the item of a row; None where the row lacks a field."""


@dataclass(frozen=True)
class ItemFile:
    """A file of items, read from the disk each time.

    Attributes:
        path: The file.
        convert: Makes the items of its rows; plain text needs none.
        expected: The fields that a row has to have, for sentences.
    """

    path: Path
    convert: Convert
    expected: str

    @property
    def name(self) -> str:
        """The name that its corpora get."""
        return self.path.stem

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items of a file that was checked."""
        if self.path.suffix.lower() in TEXT_ENDINGS:
            yield from (Item(text) for text in read_paragraphs(self.path))
            return
        for _, row in read_rows(self.path):
            if item := self.convert(row):
                yield item

    def count(self) -> Counter[str]:
        """Read the whole file once, check each row, and count the items by kind.

        Raises:
            UserError: The file is empty, is of another format or encoding, or has rows that lack
                a field; the sentence numbers the first of them.
        """
        check_file(self.path)
        if self.path.suffix.lower() in TEXT_ENDINGS:
            counts = Counter(item.kind for item in self)
            if not counts:
                raise UserError(f"{visible(self.path)} holds white space alone: give a document.")
            return counts
        counts, bad_rows = Counter(), BadRows(self.path, self.expected)
        for number, row in read_rows(self.path):
            if item := self.convert(row):
                counts[item.kind] += 1
            else:
                bad_rows.add(number, row)
        bad_rows.refuse(n_good=counts.total())
        return counts


@dataclass(frozen=True)
class ItemList:
    """Items of one part of a file, read and checked before.

    Attributes:
        path: The file.
        name: The name that its corpora get.
        items: The items.
    """

    path: Path
    name: str
    items: tuple[Item, ...]

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items."""
        return iter(self.items)

    def count(self) -> Counter[str]:
        """Count the items by kind."""
        return Counter(item.kind for item in self.items)


def text_field(row: Row, *names: str) -> str:
    """Return the first of the fields that holds text, stripped; empty without one.

    A number counts as its text. Characters that no UTF-8 text can hold count as missing.
    """
    for name in names:
        value: Any = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and (text := value.strip()):
            return text if _is_unicode(text) else ""
    return ""


def _is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8, without NUL: JSON may hold halves of pairs."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def text_list(row: Row, name: str) -> tuple[str, ...]:
    """Return a field's texts, whether it holds one or a list; empty where one is no text."""
    value = row.get(name)
    values = value if isinstance(value, list) else [value]
    texts = tuple(text_field({name: v}, name) for v in values)
    return texts if all(texts) else ()


def own_item(row: Row) -> Item | None:
    """Make the item of a user's own row: `text`, or `prompt` or `question` with `answer`."""
    if text := text_field(row, "text"):
        return Item(text)
    answers = text_list(row, "answer")
    if answers and (prompt := text_field(row, "prompt")):
        return Item(prompt=prompt, answers=answers, kind="completion")
    if answers and (question := text_field(row, "question")):
        return Item(prompt=question, answers=answers, kind="question")
    return None


OWN_FIELDS = "'text', or 'prompt' (or 'question') and 'answer'"


LETTERS = "ABCD"


def choice_item(question: str, choices: Sequence[str], right: int) -> Item | None:
    """Make the item of a question in multiple choice, answered by a letter; None if one is missing.

    Args:
        question: The question.
        choices: Its choices, one a letter of `LETTERS`.
        right: The index of the right one.
    """
    if not question or len(choices) != len(LETTERS):
        return None
    options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return Item(prompt="\n".join([question, *options]), answers=(LETTERS[right],), kind="question")


def question_item(row: Row, question: str, *answers: str) -> Item | None:
    """Make the item of a question and its answer.

    Args:
        row: The row.
        question: The field with the question.
        answers: Fields with the answer, of which the first that is there counts.
    """
    prompt = text_field(row, question)
    right = next((texts for name in answers if (texts := text_list(row, name))), ())
    return Item(prompt=prompt, answers=right, kind="question") if prompt and right else None
