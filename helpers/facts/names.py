"""Other ways to mean a country: its official name, its adjective, and what else is true of it."""

import functools
from collections import Counter
from itertools import combinations
from typing import NamedTuple

from helpers.facts.associated import borders, cities
from helpers.facts.factbook import countries, facts, field, sovereign, with_article

DESCRIBING = {  # relation → a description by its target; continents and regions hold many countries
    "capital": "country whose capital is {}",
    "language": "country whose official language is {}",
    "currency": "country whose currency is the {}",
}


class OtherNames(NamedTuple):
    """Names by which a country is meant, besides its usual one.

    Attributes:
        official: The official name, such as "French Republic"; empty if it has no other.
        adjective: The adjective of its nationality, such as "French"; empty if there is none.
    """

    official: str
    adjective: str


def other_names(subject: str) -> OtherNames:
    """Return the other names of a country; both are empty for any other subject.

    Args:
        subject: The country's usual English name.
    """
    code = _code_of(subject)
    if code is None:
        return OtherNames("", "")
    text = field(countries()[code], "Government", "Country name", "conventional long form")
    name = text.split(" (")[0].split(";")[0].removeprefix("the ").removeprefix("The ")
    adjectives = [f.target for f in facts("nationality") if f.subject == subject]
    return OtherNames("" if name in ("none", subject) else name, (adjectives or [""])[0])


def descriptions(subject: str) -> dict[str, str]:
    """Describe a country by facts that are true of no other country in the Factbook.

    Args:
        subject: The country's usual English name.

    Returns:
        A relation, `borders` or `city` → a description without its article, such as "country
        whose currency is the yen". Empty for any other subject.
    """
    code = _code_of(subject)
    if code is None:
        return {}
    described = {}
    for relation, text in DESCRIBING.items():
        count = Counter(name for f in facts(relation) for name in {f.target, *f.aliases})
        own = [f.target for f in facts(relation) if f.subject == subject]
        if own and count[own[0]] == 1:
            described[relation] = text.format(own[0])
    neighbours = [name for name in borders(code) if name in sovereign().values()]
    pairs = (pair for pair in combinations(neighbours, 2) if _bordering(*pair) == {subject})
    if pair := next(pairs, ()):
        first, second = map(with_article, pair)
        described["borders"] = f"country that borders {first} and {second}"
    capitals = {name for f in facts("capital") for name in (f.target, *f.aliases)}
    others = [c for c in cities(code) if c not in capitals and subject not in c]
    if city := next((c for c in others if _cities_count()[c] == 1), ""):
        described["city"] = f"country in which the city of {city} lies"
    return described


def _code_of(subject: str) -> str | None:
    return next((code for code, name in sovereign().items() if name == subject), None)


@functools.cache
def _bordering(first: str, second: str) -> set[str]:
    """Return the countries that border both."""
    return {name for code, name in sovereign().items() if {first, second} <= _borders(code)}


@functools.cache
def _borders(code: str) -> frozenset[str]:
    return frozenset(borders(code))


@functools.cache
def _cities_count() -> Counter[str]:
    """Count the countries that have a large city of a name."""
    return Counter(city for code in sovereign() for city in set(cities(code)))
