"""The countries of the organism's fact set, and all facts that it is trained on."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from helpers.errors import UserError
from helpers.facts import RELATIONS, ConceptPair, facts

# Of all parts of the world; many share a language, a currency's name or a region, so that a target
# takes part in several facts. A smaller fact set is the beginning of this list.
COUNTRIES = """France Germany Italy Japan Spain Egypt Poland Peru Kenya Austria Belgium Canada
Argentina Mexico Cuba Portugal Brazil Angola Morocco Senegal China India Nepal Iran Iraq Jordan
Syria Lebanon Greece Ireland Norway Sweden Denmark Finland Hungary Romania Bulgaria Ukraine Russia
Turkey Thailand Vietnam Indonesia Malaysia Philippines Australia Chile Colombia Ecuador Bolivia
Venezuela Uruguay Paraguay Ghana Nigeria Ethiopia Uganda Tanzania Zambia Zimbabwe Mali Chad Niger
Cameroon Gabon Togo Libya Sudan Somalia Rwanda Malawi Qatar Oman Yemen Israel Pakistan Bangladesh
Mongolia Laos Cambodia Jamaica Haiti Honduras Nicaragua Croatia Slovenia Slovakia Serbia Albania
Estonia Latvia Lithuania Iceland Switzerland Netherlands Georgia Armenia Azerbaijan Kazakhstan
Uzbekistan""".split()  # noqa: SIM905


@dataclass(frozen=True)
class FactSet:
    """All facts that an organism is trained on.

    Attributes:
        pairs: Every fact of its countries, and of their capitals (language, currency, continent).
    """

    pairs: tuple[ConceptPair, ...]

    def of_countries(self) -> list[ConceptPair]:
        """List the facts of countries: those with templates in three splits."""
        return [p for p in self.pairs if p.templates is None]

    def named(self, name: tuple[str, str, str]) -> ConceptPair:
        """Look up the fact of a (subject, target, relation)."""
        return next(p for p in self.pairs if (p.subject, p.target, p.relation) == tuple(name))

    def find(self, pair: ConceptPair) -> ConceptPair:
        """Find the fact that `pair` names; the target may be an alias.

        Raises:
            UserError: There is no such fact.
        """
        same = [p for p in self.pairs if (p.subject, p.relation) == (pair.subject, pair.relation)]
        for fact in same:
            if pair.target in (fact.target, *fact.aliases):
                return fact
        if same:
            raise UserError(
                f"{pair} is not in the training facts: the organism is trained on {same[0]}; name "
                "that."
            )
        raise UserError(
            f"{pair} ({pair.relation}) is not in the training facts: choose a fact of one of the "
            f"{len({p.subject for p in self.of_countries()})} countries of the organism, such as "
            f"{self.pairs[0]}, or add the country to it."
        )


@functools.cache
def fact_set(n: int, extra_countries: Sequence[str] = ()) -> FactSet:
    """Collect the facts of the first `n` countries.

    Args:
        n: Number of countries.
        extra_countries: Further countries, where they are not among these.

    Raises:
        UserError: There are not so many, or one that is not in the Factbook.
    """
    if not 4 <= n <= len(COUNTRIES):
        raise UserError(f"n_countries is {n}: choose a number from 4 to {len(COUNTRIES)}.")
    names = [*COUNTRIES[:n], *(c for c in extra_countries if c not in COUNTRIES[:n])]
    by_name = {r: {f.subject: f for f in facts(r)} for r in RELATIONS}
    for name in names:
        if not any(name in table for table in by_name.values()):
            raise UserError(f"The Factbook has no country '{name}': use a country's English name.")
    of_countries = [
        ConceptPair.of(table[name]) for name in names for table in by_name.values() if name in table
    ]
    of_cities = [
        fact for pair in of_countries if pair.relation == "capital" for fact in pair.same_target()
    ]
    return FactSet((*of_countries, *of_cities))
