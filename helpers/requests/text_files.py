"""Requests of text in files: which documents are to be forgotten, and which have to stay."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count

from helpers.errors import UserError
from helpers.facts.corpus import passages
from helpers.forward.prompts import Prompt
from helpers.io.safe_text import visible
from helpers.requests.checks import check_apart
from helpers.requests.corpus import Corpus, Document
from helpers.requests.items import ItemFile, ItemList
from helpers.requests.request import TextRequest

log = logging.getLogger(__name__)

ROLES = (
    "forget",
    "dev",
    "heldout",
    "retain",
    "retained",
    "never_learned",
    "questions",
    "retained_questions",
)
FEW = 100  # paragraphs; of fewer, larger shares are kept for measurement
N_SHARES, N_SHARES_OF_FEW = 10, 5
SHARE_OF = {"dev": 0, "heldout": 1}  # what a share of the running text is kept for
Files = Mapping[str, Sequence[ItemFile | ItemList]]
"""Role → files."""


def request_of_files(name: str, files: Files) -> TextRequest:
    """Make the request to forget the documents of files.

    Every file is read once and checked before anything starts; afterwards it is streamed. Prompts
    with answers are forgotten in one wording, and held out in another. Of running text a tenth is
    kept as `dev` and another as `heldout` where no files are named for them. Of what has to stay
    another tenth is kept as `retained`, if there are at least `FEW` documents. Without `retain`
    files the Factbook's passages have to stay.

    Args:
        name: The request's name.
        files: Role, one of `ROLES` → files; `forget` is needed.

    Raises:
        UserError: There is nothing to forget, a file cannot be used, its documents are too few to
            hold any out, or documents that are to be forgotten have to stay too.
    """
    if not files.get("forget"):
        raise UserError(f"There is nothing to forget in '{visible(name)}': name a file.")
    counts = {file: file.count() for group in files.values() for file in group}
    for role in ("questions", "retained_questions"):
        for file in files.get(role, ()):
            if counts[file]["text"]:
                raise UserError(
                    f"{visible(file.path)} is named as questions and holds running text: give rows "
                    "with 'prompt' (or 'question') and 'answer'."
                )
    forgotten, kept = files["forget"], files.get("retain", ())
    to_deal = {role for role in SHARE_OF if not files.get(role)}
    n_texts = sum((counts[f] for f in forgotten), Counter())["text"]
    names = _Names()
    forget = _corpus(names.take("forgotten"), forgotten, "train", to_deal, n_texts)
    dev = _corpus(names.take("forgotten dev"), forgotten, "dev", to_deal, n_texts)
    if files.get("dev"):
        dev = _whole(names, files["dev"])
    heldout = [_whole(names, [file]) for file in files.get("heldout", ())]
    heldout = heldout or [
        _corpus(names.take("forgotten heldout"), forgotten, "heldout", to_deal, n_texts)
    ]
    for corpus in (forget, dev, *heldout):
        _require_documents(corpus)
    retain, retained = [], [_whole(names, [file]) for file in files.get("retained", ())]
    to_hold_out = not retained
    for file in kept:
        n_texts = counts[file]["text"]
        to_deal = {"heldout"} if n_texts >= FEW and to_hold_out else set()
        retain.append(_corpus(names.take(file.name), [file], "train", to_deal, n_texts))
        if to_hold_out and (to_deal or not n_texts):
            name_heldout = names.take(f"{file.name} heldout")
            retained.append(_corpus(name_heldout, [file], "heldout", to_deal, n_texts))
    if not retain:
        log.info("%s names no text to retain: the Factbook's passages have to stay.", visible(name))
        retain = [_ordinary_text(names.take("ordinary text"), "train")]
    retained = retained or [_ordinary_text(names.take("ordinary text heldout"), "heldout")]
    never_learned = files.get("never_learned", ())
    request = TextRequest(
        name,
        "files",
        forget,
        dev,
        tuple(heldout),
        tuple(retain),
        tuple(retained),
        _whole(names, never_learned) if never_learned else None,
        _questions(files.get("questions", ())),
        _questions(files.get("retained_questions", ())),
    )
    check_apart(request)
    return request


@dataclass(frozen=True)
class _Deal:
    """A selection of the documents of files.

    Attributes:
        files: The files.
        split: The split whose wording prompts have.
        shares: Shares of the running text that are read; empty for all of it.
        n_shares: Number of shares.
    """

    files: tuple[ItemFile | ItemList, ...]
    split: str
    shares: frozenset[int]
    n_shares: int

    def documents(self) -> Iterator[Document]:
        """Read the documents, one after another."""
        for file in self.files:
            for item in file:
                is_dealt = item.kind == "text" and self.shares
                if not is_dealt or item.share(self.n_shares) in self.shares:
                    yield item.document(self.split)


def _corpus(
    name: str, files: Sequence[ItemFile | ItemList], split: str, to_deal: set[str], n_texts: int
) -> Corpus:
    """Make a corpus of files; running text is dealt out to the splits in `to_deal`."""
    n_shares = N_SHARES_OF_FEW if n_texts < FEW else N_SHARES
    shares: frozenset[int] = frozenset()
    if split in to_deal:
        shares = frozenset({SHARE_OF[split]})
    elif to_deal and split == "train":
        shares = frozenset(range(n_shares)) - {SHARE_OF[s] for s in to_deal}
    return Corpus(name, partial(_Deal.documents, _Deal(tuple(files), split, shares, n_shares)))


def _whole(names: "_Names", files: Sequence[ItemFile | ItemList]) -> Corpus:
    """Make a corpus of all documents of files, in the wording that they have there."""
    name = names.take(" ".join(file.name for file in files))
    return _corpus(name, files, "train", set(), 0)


class _Names:
    """The names of a request's corpora, each of which is taken once: tables go by them."""

    def __init__(self) -> None:
        """Begin without names."""
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        """Return a name, with a number behind it where another corpus has it."""
        numbered = (f"{name} {n}" for n in count(2))
        free = next(n for n in chain([name], numbered) if n not in self._taken)
        self._taken.add(free)
        return free


def _require_documents(corpus: Corpus) -> None:
    if next(iter(corpus), None) is None:
        raise UserError(
            f"There are too few documents to keep some apart for '{visible(corpus.name)}': name "
            "files under 'dev:' and 'heldout:', or give more documents (blank lines separate those "
            "of plain text)."
        )


def _questions(files: Sequence[ItemFile | ItemList]) -> tuple[Prompt, ...]:
    return tuple(item.asked() for file in files for item in file)


def _ordinary_text(name: str, split: str) -> Corpus:
    """Return Factbook passages, which stand for ordinary text."""
    return Corpus(name, lambda: (Document(p.text) for p in passages(split)))
