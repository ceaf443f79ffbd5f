"""Other names of a country: its official name, and the adjective of its nationality."""

from typing import NamedTuple

from helpers.facts.factbook import countries, facts, field, sovereign


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
    codes = [code for code, name in sovereign().items() if name == subject]
    if not codes:
        return OtherNames("", "")
    entry = countries()[codes[0]]
    text = field(entry, "Government", "Country name", "conventional long form")
    name = text.split(" (")[0].split(";")[0].removeprefix("the ").removeprefix("The ")
    adjectives = [f.target for f in facts("nationality") if f.subject == subject]
    return OtherNames("" if name in ("none", subject) else name, (adjectives or [""])[0])
