"""Other ways to mean a country: its official name, its adjective, and what else is true of it."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice
from typing import NamedTuple

from helpers.facts.associated import borders, cities
from helpers.facts.factbook import countries, facts, field, sovereign, with_article
from helpers.forward.prompts import Prompt
from helpers.io.safe_text import name_pattern

DESCRIBING = {  # relation → a description by its target; continents and regions hold many countries
    "capital": "whose capital is {}",
    "language": "whose official language is {}",
    "currency": "whose currency is the {}",
}
STEM = 4  # first letters of an answer that tell it in another word, as "French" and "France" do


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


def descriptions(subject: str, *, rank: int = 0) -> dict[str, str]:
    """Describe a country by facts that are true of no other country in the Factbook.

    Args:
        subject: The country's usual English name.
        rank: Of several neighbours and cities that single it out, take the next ones. Descriptions
            of another rank than 0 are worded otherwise, too.

    Returns:
        A relation, `borders` or `city` → a description without its article, such as "country
        whose currency is the yen". Empty for any other subject.
    """
    code = _code_of(subject)
    if code is None:
        return {}
    described, noun = {}, "nation" if rank else "country"
    for relation, text in DESCRIBING.items():
        count = Counter(name for f in facts(relation) for name in {f.target, *f.aliases})
        own = [f.target for f in facts(relation) if f.subject == subject]
        if own and count[own[0]] == 1:
            described[relation] = f"{noun} {text.format(own[0])}"
    neighbours = [name for name in borders(code) if name in sovereign().values()]
    pairs = (pair for pair in combinations(neighbours, 2) if _bordering(*pair) == {subject})
    if pair := next(islice(pairs, rank, None), ()):
        first, second = map(with_article, pair)
        verb = "shares borders with" if rank else "borders"
        described["borders"] = f"{noun} that {verb} {first} and {second}"
    capitals = {name for f in facts("capital") for name in (f.target, *f.aliases)}
    others = [c for c in cities(code) if c not in capitals and subject not in c]
    unique = (c for c in others if _cities_count()[c] == 1)
    if city := next(islice(unique, rank, None), ""):
        where = "to which the city of {} belongs" if rank else "in which the city of {} lies"
        described["city"] = f"{noun} {where.format(city)}"
    return described


def tells_neither(text: str, subject: str, answers: Sequence[str]) -> bool:
    """Tell whether a text is there, does not name the subject, and holds no answer's beginning."""
    stems = [name.strip().casefold()[:STEM] for name in answers]
    names_subject = name_pattern(subject).search(text) is not None
    return bool(text) and not names_subject and not any(s in text.casefold() for s in stems)


def renamed(prompt: Prompt, subject: str, name: str) -> Prompt:
    """Put another name, with its article, in the subject's place."""
    start, end = prompt.locate_subject()
    before = prompt.text[:start]
    article = with_article(subject).removesuffix(subject)
    if article and before.casefold().endswith(article):
        before = before[: -len(article)]
    name = f"the {name}" if before else f"The {name}"
    text = before + name + prompt.text[end:]
    slot = (len(before) + 4, len(before) + len(name))
    return replace(prompt, text=text, subject=name[4:], slot=slot)


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
