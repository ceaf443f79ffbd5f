"""The facts that methods are tuned on and evaluated on: known well, and split for good."""

import numpy as np
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, fact_split, known_facts
from helpers.facts.known import WELL_KNOWN_PROB, known_others

BOOK_FACT = ("France", "Paris")  # the settings' default
# Subjects that were looked at while the methods were written.
DEVELOPMENT_SUBJECTS = ("France", "Germany", "Italy", "Japan", "Greece")


def known_pairs(
    model: LanguageModel,
    relation: str,
    split: str,
    *,
    n: int,
    seed: int = 0,
    besides: ConceptPair | None = None,
) -> list[ConceptPair]:
    """Draw facts of a relation that the model knows well, for development or held out.

    Well means known, with a mean P(target) of at least `WELL_KNOWN_PROB`: the ratio after / before
    of a small probability shows little. `DEVELOPMENT_SUBJECTS` are left out of both splits, as is
    the subject of `besides`.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        split: `dev` or `heldout`, of `fact_split`.
        n: Largest number of facts.
        seed: Draws the facts.
        besides: A pair whose subject is left out.

    Raises:
        UserError: The model knows none.
    """
    known = known_facts(model, relation).query("known")
    known = known[known["probability"] >= WELL_KNOWN_PROB]
    names = [
        s for s in known["subject"] if fact_split(s) == split and s not in DEVELOPMENT_SUBJECTS
    ]
    if not names:
        raise UserError(f"The model knows no {split} fact of the relation '{relation}' well.")
    subjects = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    if besides is not None:
        subjects = [s for s in subjects if s != besides.subject]
    targets = known.set_index("subject")["target"]
    return [ConceptPair(s, targets[s], relation) for s in subjects[:n]]


def evaluation_pairs(
    model: LanguageModel, pair: ConceptPair, *, n: int, seed: int = 0
) -> list[ConceptPair]:
    """Return the facts that a run reports on: its own if it is not the book's, and held-out ones.

    The methods were built on the book's own fact, so it is no evidence. A user's own fact is what
    the user wants to know about. The held-out ones are its `others` where it has any.

    Args:
        model: The original model.
        pair: The run's own fact.
        n: Number of facts in all.
        seed: Draws the held-out facts.

    Raises:
        UserError: The model knows no held-out fact of the relation well.
    """
    user_pairs = [] if (pair.subject, pair.target) == BOOK_FACT else [pair]
    if n == len(user_pairs):
        return user_pairs
    if pair.others:
        table = known_others(model, pair).query("known")
        known = set(table[table["probability"] >= WELL_KNOWN_PROB]["subject"])
        others = [p for p in pair.comparison_pairs(seed=seed) if p.subject in known]
        return user_pairs + others[: n - len(user_pairs)]
    heldout = known_pairs(
        model, pair.factbook_relation, "heldout", n=n - len(user_pairs), seed=seed, besides=pair
    )
    return user_pairs + heldout
