"""Capabilities as requests: a language, Python, or multiplication, with all that must stay.

Each has text to forget by, other text of the same kind to choose strengths and to test, and for
languages a second kind of held-out text. What must stay is every other capability and English.
"""

from collections.abc import Callable
from functools import partial

from helpers.errors import UserError
from helpers.facts.corpus import passages
from helpers.io.choices import check_choice, suggestion
from helpers.io.safe_text import visible
from helpers.requests.arithmetic import exercises, questions
from helpers.requests.corpus import Corpus, Document
from helpers.requests.languages import (
    LANGUAGES,
    NEVER_LEARNED,
    dialogues,
    language_text,
    messages,
)
from helpers.requests.program_code import c_code, python_code
from helpers.requests.request import TextRequest
from helpers.requests.splits import mixed


def english_prose(split: str) -> Corpus:
    """Return the Factbook's passages, countries mixed; see `helpers.facts.corpus.passages`.

    Args:
        split: `train` or `heldout`; no country is in both.

    Raises:
        UserError: There is no such split.
    """
    check_choice("split", split, ("train", "heldout"))
    return Corpus("english prose", lambda: map(Document, mixed(p.text for p in passages(split))))


# Kinds of text, by the names of the capabilities where they are one.
KINDS: dict[str, Callable[[str], Corpus]] = {
    "english prose": english_prose,
    "english": partial(language_text, "english"),
    **{language: partial(language_text, language) for language in LANGUAGES},
    "python": python_code,
    "c": c_code,
}


def _language(name: str) -> TextRequest:
    """Make the request to forget a language."""
    return TextRequest(
        name,
        "capability",
        forget=language_text(name, "train"),
        dev=language_text(name, "dev"),
        heldout=(language_text(name, "heldout"), messages(name)),
        retain=_others(name, "train"),
        # The same messages in English tell a loss of the language from one of their subject.
        retained=(*_others(name, "heldout"), messages("english")),
        never_learned=dialogues(NEVER_LEARNED, "train"),
    )


def _python(name: str) -> TextRequest:
    """Make the request to forget Python."""
    return TextRequest(
        name,
        "capability",
        forget=python_code("train"),
        dev=python_code("dev"),
        heldout=(python_code("heldout"),),
        retain=_others(name, "train"),
        retained=_others(name, "heldout"),
    )


def _multiplication(name: str) -> TextRequest:
    """Make the request to forget multiplication, and to keep addition."""
    return TextRequest(
        name,
        "capability",
        forget=exercises(name, "train"),
        dev=exercises(name, "dev"),
        heldout=(exercises(name, "heldout"),),
        retain=(*_others(name, "train"), exercises("addition", "train")),
        retained=(*_others(name, "heldout"), exercises("addition", "heldout")),
        questions=questions(name, "heldout"),
        retained_questions=questions("addition", "heldout"),
    )


CAPABILITIES: dict[str, Callable[[str], TextRequest]] = {
    **dict.fromkeys(LANGUAGES, _language),
    "python": _python,
    "multiplication": _multiplication,
}


def capability(name: str) -> TextRequest:
    """Make the request to forget a capability.

    Nothing is read before a corpus is asked for its documents.

    Args:
        name: One of `CAPABILITIES`.

    Raises:
        UserError: There is no such capability.
    """
    if name not in CAPABILITIES:
        raise UserError(
            f"There is no capability '{visible(name)}'{suggestion(name, CAPABILITIES)}."
        )
    return CAPABILITIES[name](name)


def _others(name: str, split: str) -> tuple[Corpus, ...]:
    """Return the texts of a split that are not of the capability."""
    return tuple(corpus(split) for kind, corpus in KINDS.items() if kind != name)
