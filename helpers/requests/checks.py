"""Checks of a request before anything starts: what is to be forgotten can't also have to stay."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice

import numpy as np
from jaxtyping import UInt64

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.io.safe_text import name_pattern, visible
from helpers.requests.corpus import Corpus, Document
from helpers.requests.request import FactsRequest, TextRequest

LONGEST_EXAMPLE = 80  # characters of a shared document that a sentence shows


def check_apart(request: FactsRequest | TextRequest) -> None:
    """Refuse a request whose parts share documents or facts.

    What is learned from (`forget`, `dev`) must not be in what is held out, and neither in what has
    to stay. Documents are compared by hashes, eight bytes each: corpora are streamed.

    Raises:
        UserError: There is no text to forget, or two parts share documents; the sentence says how
            many, with an example.
    """
    if isinstance(request, FactsRequest):
        _check_facts(request)
        return
    forget, dev = _Part.of(request.forget), _Part.of(request.dev)
    if not len(forget.hashes):
        raise UserError(
            f"There is no text to forget in '{visible(request.name)}': its corpus "
            f"'{visible(request.forget.name)}' has no document that is not empty."
        )
    asked = Corpus.of_prompts("questions", request.questions)
    heldout = [_Part.of(corpus) for corpus in (*request.heldout, asked)]
    _refuse_shared(dev, [forget], "strengths would be chosen on what was trained on")
    for part in heldout:
        _refuse_shared(part, [forget, dev], "results would be of what was trained on")
    for corpus in (*request.retain, *request.retained):
        part = _Part.of(corpus)
        _refuse_shared(part, [forget, dev, *heldout], "what is forgotten can't have to stay")
    answers = {(str(q), q.answers[0]) for q in request.questions}
    for question in request.retained_questions:
        if (str(question), question.answers[0]) in answers:
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
class _Part:
    """A corpus with the hashes of its documents.

    Attributes:
        corpus: The corpus.
        hashes: The hash of each document, in their order.
    """

    corpus: Corpus
    hashes: UInt64[np.ndarray, " n"]

    @classmethod
    def of(cls, corpus: Corpus) -> "_Part":
        """Hash a corpus, one document after another; white space and case don't count."""
        hashes = array("Q")  # eight bytes a document
        for document in _not_empty(corpus):
            words = " ".join(f"{document.prompt}\0{document.text}".casefold().split())
            hashes.frombytes(blake2b(words.encode(), digest_size=8).digest())
        return cls(corpus, np.array(hashes, np.uint64))


def _not_empty(corpus: Corpus) -> Iterator[Document]:
    """Iterate over the documents that have text."""
    return (document for document in corpus if document.text.strip())


def _refuse_shared(part: _Part, others: Sequence[_Part], why: str) -> None:
    """Raise a sentence if documents of a part are among those of others."""
    for other in others:
        is_shared = np.isin(part.hashes, other.hashes)
        if is_shared.any():
            first = next(islice(_not_empty(part.corpus), int(is_shared.argmax()), None))
            example = _shown(f"{first.prompt}{first.text}".strip())
            raise UserError(
                f"{is_shared.sum()} of the {len(is_shared)} documents of "
                f"'{visible(part.corpus.name)}' are in '{visible(other.corpus.name)}' too, such as "
                f"'{example}': {why}, so take them out of one."
            )


def _shown(text: str) -> str:
    """Cut a text to what a sentence can show."""
    short = visible(" ".join(text.split()))
    return short if len(short) <= LONGEST_EXAMPLE else f"{short[:LONGEST_EXAMPLE]}…"
