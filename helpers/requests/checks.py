"""Checks of a request before anything starts: what is to be forgotten can't also have to stay."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import numpy as np
from jaxtyping import UInt64

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.io.safe_text import name_pattern, visible
from helpers.requests.corpus import Corpus, Document
from helpers.requests.request import FactsRequest, TextRequest

CHUNK = 200_000  # characters of documents that are in memory at a time
LONGEST_EXAMPLE = 80  # characters of a shared document that a sentence shows


def check_apart(request: FactsRequest | TextRequest) -> None:
    """Refuse a request whose parts share documents or facts.

    What is learned from (`forget`, `dev`) must not be in what is held out, and neither in what has
    to stay. Documents are compared by hashes, eight bytes each: corpora are streamed.

    Raises:
        UserError: Says how many documents two parts share, with an example.
    """
    if isinstance(request, FactsRequest):
        _check_facts(request)
        return
    learned, dev = _Hashes.of(request.forget), _Hashes.of(request.dev)
    _refuse_shared(learned, request.dev, "strengths would be chosen on what was trained on")
    for corpus in request.heldout:
        for hashes in (learned, dev):
            _refuse_shared(hashes, corpus, "results would be of what was trained on")
    to_forget = [learned, dev, *(_Hashes.of(corpus) for corpus in request.heldout)]
    for corpus in (*request.retain, *request.retained):
        for hashes in to_forget:
            _refuse_shared(hashes, corpus, "what is to be forgotten can't have to stay")
    asked = {(str(q), q.answers[0]) for q in request.questions}
    for question in request.retained_questions:
        if (str(question), question.answers[0]) in asked:
            raise UserError(
                f"The question '{_shown(str(question))}' is among what is to be forgotten and what "
                "must stay: take it out of one of them."
            )


def _check_facts(request: FactsRequest) -> None:
    """Refuse facts to forget that another pair names under `others` or `must_stay`."""
    forgotten = ForgottenFacts(request.pairs)
    for pair in request.pairs:
        for other in pair.others:
            if fact := forgotten.find(other.subject, (other.target, *other.aliases)):
                raise UserError(
                    f"'others:' of {visible(str(pair))} holds {visible(str(fact))}, which is to be "
                    "forgotten too: leave it out there."
                )
        for prompt in pair.must_stay:
            if fact := forgotten.asked_by(prompt):
                raise UserError(
                    f"'must_stay:' of {visible(str(pair))} holds '{_shown(str(prompt))}', "
                    f"which asks for {visible(str(fact))}, a fact to forget: leave it out."
                )


class ForgottenFacts:
    """Facts to forget, by subject and by answer."""

    def __init__(self, pairs: Iterable[ConceptPair]):
        """Index the pairs."""
        self._by_subject: dict[str, list[ConceptPair]] = defaultdict(list)
        self._by_answer: dict[str, list[ConceptPair]] = defaultdict(list)
        for pair in pairs:
            self._by_subject[pair.subject].append(pair)
            for answer in {name.casefold() for name in (pair.target, *pair.aliases)}:
                self._by_answer[answer].append(pair)

    def find(self, subject: str, names: Iterable[str]) -> ConceptPair | None:
        """Return a fact to forget that says the same as a subject and its targets."""
        names = tuple(names)
        return next((p for p in self._by_subject[subject] if p.states(subject, names)), None)

    def asked_by(self, prompt: Prompt) -> ConceptPair | None:
        """Return a fact to forget whose subject a prompt names, with the same answer."""
        candidates = chain(*(self._by_answer[a.strip().casefold()] for a in prompt.answers))
        return next((p for p in candidates if name_pattern(p.subject).search(str(prompt))), None)


@dataclass(frozen=True)
class _Hashes:
    """The hashes of a corpus's documents.

    Attributes:
        name: The corpus's name.
        hashes: Distinct hashes, sorted.
    """

    name: str
    hashes: UInt64[np.ndarray, " n"]

    @classmethod
    def of(cls, corpus: Corpus) -> "_Hashes":
        """Hash a corpus, one document after another."""
        parts = [np.unique(hashes) for _, hashes in _hashed(corpus)]
        return cls(corpus.name, np.unique(np.concatenate(parts or [np.empty(0, np.uint64)])))


def _hashed(
    documents: Iterable[Document],
) -> Iterator[tuple[list[Document], UInt64[np.ndarray, " n"]]]:
    """Yield some documents at a time with their hashes; white space and case don't count."""
    chunk: list[Document] = []
    digests, n_characters = [], 0
    for document in chain(documents, [None]):
        if chunk and (document is None or n_characters > CHUNK):
            yield chunk, np.frombuffer(b"".join(digests), np.uint64)
            chunk, digests, n_characters = [], [], 0
        if document is not None:
            text = f"{document.prompt}\0{document.text}"
            words = " ".join(text.casefold().split())
            digests.append(blake2b(words.encode(), digest_size=8).digest())
            chunk.append(document)
            n_characters += len(text)


def _refuse_shared(hashes: _Hashes, corpus: Corpus, why: str) -> None:
    """Raise a sentence if documents of a corpus are among the hashed ones."""
    n_shared, n, example = 0, 0, ""
    for chunk, of_chunk in _hashed(corpus):
        is_shared = np.isin(of_chunk, hashes.hashes)
        n_shared, n = n_shared + int(is_shared.sum()), n + len(chunk)
        if is_shared.any() and not example:
            document = chunk[int(is_shared.argmax())]
            example = _shown(f"{document.prompt}{document.text}".strip())
    if n_shared:
        raise UserError(
            f"{n_shared} of the {n} documents of '{visible(corpus.name)}' are in "
            f"'{visible(hashes.name)}' too, such as '{example}': {why}, so take them out of one."
        )


def _shown(text: str) -> str:
    """Cut a text to what a sentence can show."""
    short = visible(" ".join(text.split()))
    return short if len(short) <= LONGEST_EXAMPLE else f"{short[:LONGEST_EXAMPLE]}…"
