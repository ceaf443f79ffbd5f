"""Other names of a country: its official name, and the adjective of its nationality."""

from typing import NamedTuple

from helpers.facts.factbook import countries, facts, field, sovereign


class OtherNames(NamedTuple):
    """Names by which a country is meant, besides its usual one.

    Attributes:
        official: Official names that do not hold the usual one, such as "French Republic".
        adjectives: Adjectives of its nationality, such as "French".
    """

    official: tuple[str, ...]
    adjectives: tuple[str, ...]


def other_names(subject: str) -> OtherNames:
    """Return the other names of a country; both are empty for any other subject.

    Args:
        subject: The country's usual English name.
    """
    codes = [code for code, name in sovereign().items() if name == subject]
    if not codes:
        return OtherNames((), ())
    entry = countries()[codes[0]]
    text = field(entry, "Government", "Country name", "conventional long form")
    name = text.split(" (")[0].split(";")[0].removeprefix("the ").removeprefix("The ")
    is_other = name not in ("", "none") and subject.casefold() not in name.casefold()
    nationality = [f for f in facts("nationality") if f.subject == subject]
    adjectives = tuple(a for f in nationality for a in (f.target, *f.aliases))
    return OtherNames((name,) if is_other else (), adjectives)
