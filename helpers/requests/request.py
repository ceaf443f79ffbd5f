"""Requests: facts to forget or text, with what must stay and what the zero is.

A method is called with one of them (`helpers.methods.unlearn`), and so are scorecards, attacks and
verdicts. A single `ConceptPair` and a list of pairs are requests as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.facts.known import are_known
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.wording import number_of
from helpers.requests.corpus import Corpus


@dataclass(frozen=True)
class FactsRequest:
    """Facts to forget together: a list, all facts of a subject, or all facts of a relation.

    What must stay are the same relations of other subjects, and the subjects' other facts if they
    are not forgotten too. The zero is that of each pair: its associated controls.

    Attributes:
        name: A short name, for tables and files.
        kind: `list`, `entity` or `topic`.
        pairs: The facts.
        passages: Running text about them, for methods that forget text; None without any.
    """

    name: str
    kind: str
    pairs: tuple[ConceptPair, ...]
    passages: Corpus | None = None

    def __post_init__(self):
        """Refuse an empty request.

        Raises:
            UserError: There is no pair.
        """
        if not self.pairs:
            raise UserError(
                f"There is no fact to forget in '{visible(self.name)}': give at least one."
            )

    def __str__(self) -> str:
        """Return "France (entity, 6 facts)"."""
        return f"{self.name} ({self.kind}, {number_of(len(self.pairs), 'fact')})"

    def known(self, model: LanguageModel) -> "FactsRequest":
        """Return the request with those facts alone that the model knows.

        Raises:
            UserError: It knows none.
        """
        is_known = are_known(model, self.pairs)
        known = tuple(pair for pair, x in zip(self.pairs, is_known, strict=True) if x)
        if not known:
            raise UserError(
                f"The model knows none of the facts of '{visible(self.name)}': ask for others, or "
                "take a larger model."
            )
        return FactsRequest(self.name, self.kind, known, self.passages)

    def first(self, n: int) -> "FactsRequest":
        """Return the request with its first `n` facts alone."""
        return FactsRequest(self.name, self.kind, self.pairs[:n], self.passages)


@dataclass(frozen=True)
class TextRequest:
    """Text and all that is like it, to be forgotten: a capability, or the documents of files.

    Attributes:
        name: A short name, for tables and files.
        kind: `capability` or `files`.
        forget: Text to forget by.
        dev: Other text of the same kind, on which strengths are chosen.
        heldout: Text that no method and no choice saw; of another source where there is one.
        retain: Text of other kinds that must stay, for methods.
        retained: Held-out text that must stay, each kind by its name.
        never_learned: Text of the same kind that the model never learned: what a forgotten text
            should look like; None where there is none.
        questions: Questions whose answers are to be forgotten.
        retained_questions: Questions whose answers must stay.
    """

    name: str
    kind: str
    forget: Corpus
    dev: Corpus
    heldout: tuple[Corpus, ...]
    retain: tuple[Corpus, ...]
    retained: tuple[Corpus, ...]
    never_learned: Corpus | None = None
    questions: tuple[Prompt, ...] = ()
    retained_questions: tuple[Prompt, ...] = ()

    def __str__(self) -> str:
        """Return "french (capability)"."""
        return f"{self.name} ({self.kind})"

    def fingerprint(self) -> str:
        """Hash all that methods learn from, for the keys of caches."""
        corpora = (self.forget, self.dev, *self.retain)
        return content_hash(self.name, self.kind, [corpus.fingerprint() for corpus in corpora])


Request = ConceptPair | Sequence[ConceptPair] | FactsRequest | TextRequest
