"""Rules between facts, and what can be deduced with them.

A capital has the language, the currency and the continent of its country. So each of these facts
follows from two others, and one that was forgotten alone can still be deduced.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from helpers.facts.pairs import ConceptPair

Triple = tuple[str, str, str]
"""A fact as its subject, relation and target."""


@dataclass(frozen=True)
class Rule:
    """A rule with its variables filled in.

    Attributes:
        premises: Facts from which the conclusion follows together.
        conclusion: The fact that follows.
    """

    premises: frozenset[Triple]
    conclusion: Triple


def triple(pair: ConceptPair) -> Triple:
    """Return a pair as a triple."""
    return pair.subject, pair.relation, pair.target


def rules_between(pairs: Iterable[ConceptPair]) -> list[Rule]:
    """List the rules of capitals between facts: a city and its country share what is said of both.

    capital(x, y) ∧ r(x, z) ⇒ r(y, z), and capital(x, y) ∧ r(y, z) ⇒ r(x, z).
    """
    facts = dict.fromkeys(triple(pair) for pair in pairs)
    rules = []
    for capital in facts:
        country, relation, city = capital
        if relation != "capital":
            continue
        for fact in facts:
            if fact[0] == country and (city, *fact[1:]) in facts:
                of_city = (city, *fact[1:])
                rules += [Rule(frozenset({capital, fact}), of_city)]
                rules += [Rule(frozenset({capital, of_city}), fact)]
    return rules


def closure(facts: Iterable[Triple], rules: Sequence[Rule]) -> set[Triple]:
    """Return the facts with all that follows from them."""
    known = set(facts)
    while new := {r.conclusion for r in rules if r.premises <= known} - known:
        known |= new
    return known


def minimal_removals(
    fact: Triple, facts: Collection[Triple], rules: Sequence[Rule]
) -> list[frozenset[Triple]]:
    """List the smallest sets of facts without which a fact no longer follows from the others.

    None of them holds another one: Wu et al. 2024, "Evaluating Deep Unlearning in Large Language
    Models" (arXiv 2410.15153), section 3.
    """
    removals: set[frozenset[Triple]] = set()
    todo, seen = [frozenset({fact})], set()
    while todo:
        removed = todo.pop()
        if removed in seen:
            continue
        seen.add(removed)
        rest = set(facts) - removed
        if fact not in closure(rest, rules):
            removals.add(removed)
            continue
        # One of the facts that the deduction rests on has to go: branch over them.
        todo += [removed | {premise} for premise in _support(fact, rest, rules)]
    return [x for x in removals if not any(other < x for other in removals)]


def _support(fact: Triple, facts: set[Triple], rules: Sequence[Rule]) -> set[Triple]:
    """Return facts that one deduction of a fact rests on; the facts have to give it."""
    because: dict[Triple, set[Triple]] = {known: {known} for known in facts}
    while fact not in because:
        for rule in rules:
            if rule.conclusion not in because and rule.premises <= because.keys():
                because[rule.conclusion] = set().union(*(because[p] for p in rule.premises))
    return because[fact]
