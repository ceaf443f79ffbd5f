"""Other subjects that pairs are compared with: the Factbook's, or a user's own."""

from collections.abc import Sequence

from helpers.facts.factbook import facts
from helpers.facts.pairs import ConceptPair


def one_of_each_group(pairs: Sequence[ConceptPair]) -> list[ConceptPair]:
    """Choose the first pair of each group that is compared with the same facts.

    Pairs of a relation share the Factbook's facts; pairs with `others` share them where they are
    asked by the same prompts.
    """
    groups: dict[tuple, ConceptPair] = {}
    for pair in pairs:
        texts = tuple(str(p) for p in pair.others[0].prompts("train")) if pair.others else ()
        groups.setdefault((pair.relation, pair.others, texts), pair)
    return list(groups.values())


def compared_facts(pair: ConceptPair) -> list[ConceptPair]:
    """List the facts of a pair's group: all of its `others`, or all of its relation's."""
    return list(pair.others) or [ConceptPair.of(fact) for fact in facts(pair.relation)]
