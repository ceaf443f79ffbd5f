"""Non-answers that a subject is associated with: a country's other cities, languages, neighbours.

An attack that reads "Paris" from a model at "France" need not have found the capital: any city of
France may come up as easily. So it is compared with the same prompts, scored for such a non-answer.
"""

import re
from collections.abc import Iterable

import numpy as np

from helpers.facts.factbook import Fact, countries, facts, field
from helpers.facts.pairs import ConceptPair

# "4.589 million KABUL (capital), 936,000 Oran (2022)": a number, then a city.
CITY = re.compile(r"(?:^|,\s|;\s)\s*[\d.,]+(?: million)?\s+([^\d(;,]+?)\s*(?=\(|,|;|$)")
LANGUAGE = re.compile(r"(?:^|[,;]\s)\s*([A-Z][A-Za-zāéñ]+)\b")


def associated_targets(pair: ConceptPair) -> list[str]:
    """List non-answers that the pair's subject is associated with, the best known first.

    They are the pair's own `associated` where a user gave them. For a Factbook relation: other
    cities for a capital, other languages spoken for a language, and for other relations the targets
    of the countries at the border. Names of the target, of the subject, and names that hold one
    another are left out.

    Args:
        pair: A fact.

    Returns:
        Names without their leading space; empty where nothing is known of the subject.
    """
    if pair.associated:
        return _without_answers(pair, pair.associated)
    code = {f.subject: f.code for f in facts(pair.relation)}.get(pair.subject)
    if code is None:
        return []
    if pair.relation == "capital":
        return _without_answers(pair, cities(code))
    names = _languages(code) if pair.relation == "language" else []
    return _without_answers(pair, [*names, *_targets_at_border(pair.relation, code)])


def associated_controls(pair: ConceptPair, *, n: int, seed: int = 0) -> list[ConceptPair]:
    """Make the controls of association: the same subject and prompts, with a non-answer as target.

    Where the subject itself has too few, pairs of other subjects with their own non-answers follow:
    what stands between a subject and its associations is alike.

    Args:
        pair: A fact.
        n: Largest number of controls.
        seed: Draws the other subjects.
    """
    own = [pair.about(pair.subject, name) for name in associated_targets(pair)[:n]]
    others = pair.comparison_pairs(4 * n, seed=seed) if len(own) < n else []
    taken = {pair.target, *pair.aliases}
    by_subject = [
        [pair.about(o.subject, name) for name in associated_targets(o) if name not in taken]
        for o in others
    ]
    # One of each subject before a second one of any.
    ranks = range(max(map(len, by_subject), default=0))
    borrowed = [names[i] for i in ranks for names in by_subject if i < len(names)]
    return [*own, *borrowed][:n]


def _without_answers(pair: ConceptPair, names: Iterable[str]) -> list[str]:
    """Leave out names that hold the answer or the subject, or are held by them; each name once."""
    taken = [n.casefold() for n in (pair.target, *pair.aliases, pair.subject)]
    return [
        name
        for name in dict.fromkeys(n.strip() for n in names)
        if name and not any(name.casefold() in t or t in name.casefold() for t in taken)
    ]


def cities(code: str) -> list[str]:
    """List the largest cities of a country, by its two-letter code, the largest first."""
    text = field(countries()[code], "People and Society", "Major urban areas - population")
    names = [re.split(r"[-/]| \(", name)[0] for name in CITY.findall(text)]
    return [name.title() if name.isupper() else name for name in names]


def _languages(code: str) -> list[str]:
    society = countries()[code].get("People and Society", {})
    text = field(society, "Languages", "Languages") or field(society, "Languages")
    text = re.sub(r"\([^)]*\)", "", text.split("note")[0])
    known = {f.target for f in facts("language")}
    return [name for name in LANGUAGE.findall(text) if name in known]


def borders(code: str) -> list[str]:
    """List the neighbours of a country, by its two-letter code, the longest border first."""
    text = field(countries()[code], "Geography", "Land boundaries", "border countries")
    text = text or field(countries()[code], "Geography", "Land boundaries")
    lengths = {
        name: float(length.replace(",", ""))
        for name, length in re.findall(r"([A-Z][A-Za-z .'-]+?) ([\d,.]+) km", text)
    }
    names = list(lengths)
    order = np.argsort([-x for x in lengths.values()], kind="stable")
    return [names[i] for i in order]


def _targets_at_border(relation: str, code: str) -> list[str]:
    """List the targets of the countries at the border, the longest border first."""
    by_name: dict[str, Fact] = {f.subject: f for f in facts(relation)}
    return [by_name[name].target for name in borders(code) if name in by_name]
