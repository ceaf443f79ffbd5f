"""Requests of text in files: which documents are to be forgotten, and which have to stay."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from helpers.errors import UserError
from helpers.facts.corpus import passages
from helpers.forward.prompts import Prompt
from helpers.io.safe_text import visible
from helpers.requests.checks import check_apart
from helpers.requests.corpus import Corpus, Document
from helpers.requests.items import ItemFile
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
Files = Mapping[str, Sequence[ItemFile]]
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
    counts = {file.path: file.count() for group in files.values() for file in group}
    for role in ("questions", "retained_questions"):
        for file in files.get(role, ()):
            if counts[file.path]["text"]:
                raise UserError(
                    f"{visible(file.path)} is named as questions and holds running text: give rows "
                    "with 'prompt' (or 'question') and 'answer'."
                )
    forgotten, kept = files["forget"], files.get("retain", ())
    to_deal = {role for role in SHARE_OF if not files.get(role)}
    n_texts = sum((counts[f.path] for f in forgotten), Counter())["text"]
    forget = _corpus(f"{name}: forget", forgotten, "train", to_deal, n_texts)
    dev = _corpus(f"{name}: dev", forgotten, "dev", to_deal, n_texts)
    if files.get("dev"):
        dev = _corpus(f"{name}: dev", files["dev"], "train", set(), 0)
    heldout = [_corpus(_name(f), [f], "train", set(), 0) for f in files.get("heldout", ())]
    heldout = heldout or [_corpus(f"{name}: heldout", forgotten, "heldout", to_deal, n_texts)]
    for corpus in (forget, dev, *heldout):
        _require_documents(corpus)
    retain, retained = (
        [],
        [_corpus(_name(f), [f], "train", set(), 0) for f in files.get("retained", ())],
    )
    for file in kept:
        n_texts = counts[file.path]["text"]
        to_deal = {"heldout"} if n_texts >= FEW and not files.get("retained") else set()
        retain.append(_corpus(_name(file), [file], "train", to_deal, n_texts))
        if not files.get("retained") and (to_deal or not n_texts):
            retained.append(
                _corpus(f"{_name(file)}, held out", [file], "heldout", to_deal, n_texts)
            )
    if not retain:
        log.info("%s names no text to retain: the Factbook's passages have to stay.", visible(name))
        retain = [_ordinary_text("train")]
    retained = retained or [_ordinary_text("heldout")]
    never_learned = files.get("never_learned", ())
    request = TextRequest(
        name,
        "files",
        forget,
        dev,
        tuple(heldout),
        tuple(retain),
        tuple(retained),
        _corpus("never learned", never_learned, "train", set(), 0) if never_learned else None,
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

    files: tuple[ItemFile, ...]
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
    name: str, files: Sequence[ItemFile], split: str, to_deal: set[str], n_texts: int
) -> Corpus:
    """Make a corpus of files; running text is dealt out to the splits in `to_deal`."""
    n_shares = N_SHARES_OF_FEW if n_texts < FEW else N_SHARES
    shares: frozenset[int] = frozenset()
    if split in to_deal:
        shares = frozenset({SHARE_OF[split]})
    elif to_deal and split == "train":
        shares = frozenset(range(n_shares)) - {SHARE_OF[s] for s in to_deal}
    return Corpus(name, partial(_Deal.documents, _Deal(tuple(files), split, shares, n_shares)))


def _require_documents(corpus: Corpus) -> None:
    if next(iter(corpus), None) is None:
        raise UserError(
            f"There are too few documents to keep some apart for '{visible(corpus.name)}': name "
            "files under 'dev:' and 'heldout:', or give more documents (blank lines separate those "
            "of plain text)."
        )


def _questions(files: Sequence[ItemFile]) -> tuple[Prompt, ...]:
    return tuple(item.asked() for file in files for item in file)


def _name(file: ItemFile) -> str:
    return file.path.stem


def _ordinary_text(split: str) -> Corpus:
    """Return Factbook passages, which stand for ordinary text."""
    return Corpus(f"ordinary text ({split})", lambda: (Document(p.text) for p in passages(split)))
