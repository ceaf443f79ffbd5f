"""EMBER: concepts, with sentences and questions about them (Suslik, Shafran & Geva 2026).

A file is known by its form, whatever its name or place among the files:

- A list of rows with `concept` and `sentences` is to be forgotten.
- A list of rows with `sentence` is neutral and has to stay.
- An object has concepts as fields. `QA_train` and `QA_test` of a concept are lists of questions,
  `SimdomQA_train` and `SimdomQA_test` those of a similar domain, which have to stay.
  `RelearnParagraphs` are held out.

A question has `q` and `a`; one in multiple choice has `options` and `correct_answer`, and is scored
by the letter of the right one. Methods learn from the sentences and from what is `train`. What
comes in `test` or among the held-out paragraphs too is not learned from.
"""

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.requests.items import Item, ItemList, choice_item, question_item, text_field, text_list
from helpers.requests.request import TextRequest
from helpers.requests.rows import BadRows, field_names, read_object, read_rows
from helpers.requests.text_files import request_of_files

log = logging.getLogger(__name__)

ROLE_OF = {
    "sentences": "forget",
    "sentence": "retain",
    "QA_train": "forget",
    "QA_test": "questions",
    "SimdomQA_train": "retain",
    "SimdomQA_test": "retained_questions",
    "RelearnParagraphs": "heldout",
}
LEARNED = ("forget", "retain")
TEXTS = ("sentences", "sentence", "RelearnParagraphs")  # parts of running text
LIST_FIELDS = "'concept' and 'sentences' (or 'sentence')"
QUESTION_FIELDS = "'q' and 'a' (or 'q', four 'options' and the 'correct_answer' among them)"
N_SHOWN, LONGEST_NAME = 8, 60  # concepts that a sentence lists, and their characters


@dataclass(frozen=True)
class Part:
    """One part of a file: the sentences or questions of one kind about one concept.

    Attributes:
        path: The file.
        name: One of `ROLE_OF`.
        concept: The concept; None for neutral sentences.
        values: The texts or rows.
    """

    path: Path
    name: str
    concept: str | None
    values: list[Any]

    def is_about(self, concept: str) -> bool:
        """Tell whether the part belongs to a request to forget a concept; case doesn't count."""
        return self.concept is None or self.concept.casefold() == concept.casefold()

    def items(self) -> ItemList:
        """Make the items.

        Raises:
            UserError: There is none, or one is no text or question; the sentence has its number.
        """
        about = f", {self.concept}" if self.concept else ""
        shown = f"{self.path} ({self.name}{about})"
        if not self.values:
            raise UserError(f"{visible(shown)} is an empty list: give at least one row.")
        is_text = self.name in TEXTS
        bad_rows = BadRows(shown, "texts" if is_text else QUESTION_FIELDS)
        items = []
        for number, value in enumerate(self.values, 1):
            if item := _text(value) if is_text else _question(value):
                items.append(item)
            else:
                bad_rows.add(number, value if isinstance(value, dict) else {})
        bad_rows.refuse(n_good=len(items))
        name = self.path.stem if is_text else f"{self.path.stem} {self.name}"
        return ItemList(self.path, name, tuple(items))


def read(paths: Sequence[Path], concept: str) -> TextRequest:
    """Read EMBER's files.

    Args:
        paths: The files.
        concept: The concept to forget.

    Raises:
        UserError: A file is of another format, has no such concept, or there is nothing to forget.
    """
    lists: dict[str, list[ItemList]] = {role: [] for role in ROLE_OF.values()}
    for path in paths:
        parts = list(_parts(path))
        concepts = list(dict.fromkeys(p.concept for p in parts if p.concept is not None))
        about = [part for part in parts if part.is_about(concept)]
        if concepts and all(part.concept is None for part in about):
            raise UserError(_no_concept(path, concept, concepts))
        for part in about:
            lists[ROLE_OF[part.name]].append(part.items())
    held_out = {_key(i) for r in lists if r not in LEARNED for items in lists[r] for i in items}
    for role in LEARNED:
        lists[role] = [rest for items in lists[role] if (rest := _without(items, held_out)).items]
    if not lists["forget"]:
        raise UserError(
            "The files named for EMBER hold nothing to forget by: name concept_sentences.json, or "
            "the questions about the concept."
        )
    return request_of_files(f"ember {concept}", lists)


def _parts(path: Path) -> Iterator[Part]:
    """Yield the parts of a file, of all concepts."""
    content = read_object(path)
    if content and all(isinstance(value, dict) for value in content.values()):
        for concept, parts in content.items():
            known = [name for name in parts if name in ROLE_OF and name[0].isupper()]
            if not known:
                raise UserError(
                    f"{visible(path)} has {field_names(parts)} under '{_short(concept)}', and "
                    "'QA_train', 'QA_test', 'SimdomQA_train', 'SimdomQA_test' or "
                    "'RelearnParagraphs' are expected."
                )
            for name in known:
                values = parts[name]
                if not isinstance(values, list):
                    raise UserError(
                        f"'{name}' of '{_short(concept)}' in {visible(path)} has to be a list."
                    )
                yield Part(path, name, concept.strip(), values)
        return
    neutral, bad_rows, n_good = [], BadRows(path, LIST_FIELDS), 0
    for number, row in read_rows(path):
        concept, sentence = text_field(row, "concept"), text_field(row, "sentence")
        if concept and isinstance(row.get("sentences"), list):
            yield Part(path, "sentences", concept, row["sentences"])
        elif sentence:
            neutral.append(sentence)
        else:
            bad_rows.add(number, row)
            continue
        n_good += 1
    bad_rows.refuse(n_good=n_good)
    if neutral:
        yield Part(path, "sentence", None, neutral)


def _text(value: Any) -> Item | None:
    text = text_field({"text": value}, "text")
    return Item(text) if text else None


def _question(value: Any) -> Item | None:
    if not isinstance(value, dict):
        return None
    if "options" not in value:
        return question_item(value, "q", "a")
    options, answer = text_list(value, "options"), text_field(value, "correct_answer")
    if answer not in options:
        return None
    return choice_item(text_field(value, "q"), options, options.index(answer))


def _key(item: Item) -> str:
    """Return an item's words, by which repetitions are found; case doesn't count."""
    return " ".join("\0".join([item.prompt, item.text, *item.answers]).casefold().split())


def _without(items: ItemList, held_out: set[str]) -> ItemList:
    """Leave out the items that are held out too."""
    rest = tuple(item for item in items if _key(item) not in held_out)
    if n_left_out := len(items.items) - len(rest):
        log.info("Left out of %s, for they are held out: %d rows.", visible(items.name), n_left_out)
    return ItemList(items.path, items.name, rest)


def _no_concept(path: Path, concept: str, concepts: Sequence[str]) -> str:
    """Return the sentence about a missing or unknown concept, with the nearest or first ones."""
    names = [_short(name) for name in concepts]
    listed: Iterable[str] = names[:N_SHOWN]
    if concept:
        listed = difflib.get_close_matches(_short(concept), names, n=N_SHOWN, cutoff=0.0)
    more = ", …" if len(names) > N_SHOWN else ""
    there_are = f"there are {', '.join(listed)}{more}"
    if concept:
        return f"{visible(path)} has no concept '{_short(concept)}'; {there_are}."
    return (
        f"{visible(path)} holds several concepts, so name one before the colon, as in "
        f"'ember@{names[0]}:{visible(path.name)}'; {there_are}."
    )


def _short(name: str) -> str:
    return visible(name)[:LONGEST_NAME]
