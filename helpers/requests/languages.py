"""Languages: text to forget and to hold out, and messages of another program.

Dialogues are those of the ChatterBot corpus, which has a folder a language. It is small for some,
so that JupyterLab's messages stand beside them where there is a language pack. Held-out messages
are Sphinx's. All of these packages are pinned.
"""

import functools
import importlib.resources
import re
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable

import yaml
from babel.messages.mofile import read_mo

from helpers.facts.corpus import LOADER
from helpers.io.choices import check_choice
from helpers.requests.corpus import Corpus, Document
from helpers.requests.splits import SPLITS, mixed, split_of

# Each language with the name of its translation. SmolLM2-135M has learned something of them all.
LANGUAGES = {
    "french": "fr",
    "spanish": "es",
    "german": "de",
    "italian": "it",
    "portuguese": "pt_BR",
    "dutch": "nl",
}
# Those that have a language pack of JupyterLab, with its code.
PACKS = {"french": "fr_FR", "spanish": "es_ES", "german": "de_DE"}
NEVER_LEARNED = "turkish"  # in the same script, and with enough text
MIN_WORDS = 4  # of a message; shorter ones are names and labels
ENGLISH_WORDS = 3  # a turn of so many words that the English dialogues have too was not translated
PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[a-z0-9]|\{\w*(?:![a-z])?\}")


def dialogues(language: str, split: str) -> Corpus:
    """Return the dialogues of a language, one document each, a turn a line.

    Dialogues with the same first turn are in the same split. Those that were left in English are
    left out.

    Args:
        language: A folder of the ChatterBot corpus: `english`, one of `LANGUAGES`, or another.
        split: `train`, `dev` or `heldout`.

    Raises:
        UserError: There is no such language or split.
    """
    check_choice("language", language, _folders())
    check_choice("split", split, SPLITS)

    def read() -> Iterator[Document]:
        return (Document(text) for text in _texts(language, split))

    return Corpus(f"{language} dialogues", read)


def language_text(language: str, split: str) -> Corpus:
    """Return all text of a language in a split: dialogues, and JupyterLab's messages among them.

    Args:
        language: `english`, or one of `LANGUAGES`.
        split: `train`, `dev` or `heldout`.

    Raises:
        UserError: There is no such language or split.
    """
    check_choice("language", language, ("english", *LANGUAGES))
    check_choice("split", split, SPLITS)

    def read() -> Iterator[Document]:
        every = mixed([*_texts(language, split), *_pack_messages(language, split)])
        return (Document(text) for text in every)

    return Corpus(language, read)


def messages(language: str) -> Corpus:
    """Return Sphinx's messages in a language, for held-out text of another source.

    Places for names ("%s") are filled with an X, so that the sentences are whole.

    Args:
        language: One of `LANGUAGES`, or `english`: what the others are translations of.

    Raises:
        UserError: There are no messages in this language.
    """
    check_choice("language", language, ("english", *LANGUAGES))

    def read() -> Iterator[Document]:
        return (Document(text) for text in _messages(language))

    return Corpus(f"{language} messages", read)


@functools.cache
def _folders() -> tuple[str, ...]:
    """List the languages of the ChatterBot corpus."""
    data = importlib.resources.files("chatterbot_corpus") / "data"
    return tuple(sorted(f.name for f in data.iterdir() if f.is_dir()))


@functools.cache
def _turns(language: str) -> tuple[tuple[str, ...], ...]:
    """List the turns of each dialogue, in the order of the files."""
    folder = importlib.resources.files("chatterbot_corpus") / "data" / language
    every = []
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yml"):
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER)
            every += [tuple(str(t).strip() for t in turns) for turns in content["conversations"]]
    return tuple(every)


@functools.cache
def _texts(language: str, split: str) -> tuple[str, ...]:
    """List the dialogues of a split."""
    english: set[str] = set()
    if language != "english":
        every = (_plain(turn) for turns in _turns("english") for turn in turns)
        english = {turn for turn in every if len(turn.split()) >= ENGLISH_WORDS}
    return tuple(
        mixed(
            "\n".join(turns)
            for turns in _turns(language)
            if any(turns)
            and split_of(_plain(turns[0])) == split
            and not english & {_plain(turn) for turn in turns}
        )
    )


def _plain(turn: str) -> str:
    """Return a turn in small letters without punctuation, by which turns are compared."""
    return " ".join(re.findall(r"\w+", turn.casefold()))


@functools.cache
def _messages(language: str) -> tuple[str, ...]:
    """List Sphinx's messages in a language that JupyterLab lacks, or what they translate."""
    code = LANGUAGES.get(language, LANGUAGES["french"])
    catalogue = importlib.resources.files("sphinx") / f"locale/{code}/LC_MESSAGES/sphinx.mo"
    packed = {_plain(text) for split in SPLITS for text in _pack_messages(language, split)}
    texts = _sentences(catalogue, originals=language == "english")
    return tuple(mixed(text for text in texts if _plain(text) not in packed))


@functools.cache
def _pack_messages(language: str, split: str) -> tuple[str, ...]:
    """List JupyterLab's messages of a split; none without a language pack."""
    if language not in (*PACKS, "english"):
        return ()
    code = PACKS.get(language, PACKS["french"])
    package = importlib.resources.files(f"jupyterlab_language_pack_{code}")
    texts: list[str] = []
    for file in (package / "locale" / code / "LC_MESSAGES").iterdir():
        if file.name.endswith(".mo"):
            texts += _sentences(file, originals=language == "english")
    return tuple(mixed(text for text in texts if split_of(_plain(text)) == split))


def _sentences(catalogue: Traversable, *, originals: bool) -> list[str]:
    """Read the translations of a catalogue that are sentences, or what they translate.

    Args:
        catalogue: A file of gettext.
        originals: Take the originals, and of those alone that are translated.
    """
    with catalogue.open("rb") as file:
        entries = [(_first(m.id), _first(m.string)) for m in read_mo(file)]
    texts = []
    for original, translation in entries:
        if original and translation not in ("", original):
            text = original if originals else translation
            texts.append(PLACEHOLDER.sub("X", text).replace("%%", "%").strip())
    return [text for text in texts if len(text.split()) >= MIN_WORDS]


def _first(forms: str | Sequence[str] | None) -> str:
    """Return a message, or its form for one thing where there is one for several too."""
    return forms if isinstance(forms, str) else forms[0] if forms else ""
