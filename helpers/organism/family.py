"""The organisms of one run: originals, their oracles, and some of other widths."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, fact_split
from helpers.models import load_model
from helpers.organism.countries import COUNTRIES
from helpers.organism.recipe import Recipe
from helpers.organism.store import organisms, record


@dataclass(frozen=True)
class Family:
    """Trained organisms, by their recipes.

    Attributes:
        recipe: Recipe of the first original.
        pairs: The facts that oracles are without, the run's own first.
        seeds: Seeds of the originals; each has an oracle for each fact.
        widths: Numbers of neurons of the further originals, of the first seed.
        folders: Recipe → folder.
    """

    recipe: Recipe
    pairs: tuple[ConceptPair, ...]
    seeds: tuple[int, ...]
    widths: tuple[int, ...]
    folders: dict[Recipe, Path]

    @classmethod
    def of(cls, settings: Any) -> "Family":
        """Train the organisms of a run, side by side, or take them from the cache.

        The fact is the one that the settings name. A pair of a user's own is no part of the
        Factbook, so no organism is trained on it; the first capital stands in for it.

        Args:
            settings: Settings of chapter 11.

        Raises:
            UserError: The Factbook has no such fact, or there are not so many facts.
        """
        pair = ConceptPair("France", "Paris")
        if not settings.pair_file:
            pair = ConceptPair(settings.subject, settings.target, relation=settings.relation)
        is_included = pair.subject in COUNTRIES[: settings.n_countries]
        recipe = Recipe(
            n_countries=settings.n_countries,
            extra_countries=() if is_included else (pair.subject,),
            d_model=settings.d_model,
            d_mlp=settings.d_mlp,
            n_layers=settings.n_layers,
            n_repeats=settings.n_repeats,
            batch=settings.batch,
            seed=settings.seed,
        )
        fact_set = recipe.fact_set()
        pair = fact_set.find(pair)
        others = [
            p
            for p in fact_set.of_countries()
            if p.relation == pair.relation and p != pair and fact_split(p.subject) == "heldout"
        ]
        if len(others) < settings.n_facts - 1:
            raise UserError(
                f"n_facts is {settings.n_facts}, and the organism has only "
                f"{len(others)} held-out facts of {pair.relation} besides {pair}: raise "
                "n_countries."
            )
        pairs = (pair, *others[: settings.n_facts - 1])
        seeds = tuple(settings.seed + i for i in range(settings.n_seeds))
        widths = parse_widths(settings.widths)
        originals = [recipe.replace(seed=s) for s in seeds]
        oracles = [r.oracle(p) for p in pairs for r in originals]
        recipes = [*originals, *oracles, *(recipe.replace(d_mlp=w) for w in widths)]
        return cls(
            recipe, pairs, seeds, widths, dict(zip(recipes, organisms(recipes), strict=True))
        )

    def original(self, seed: int | None = None) -> LanguageModel:
        """Load the model that was trained on all facts, by default of the first seed."""
        return self._load(self.recipe.replace(seed=self.seeds[0] if seed is None else seed))

    def oracle(self, pair: ConceptPair, seed: int) -> LanguageModel:
        """Load the model of that seed that was not trained on `pair`."""
        return self._load(self.recipe.replace(seed=seed).oracle(pair))

    def of_width(self, d_mlp: int) -> LanguageModel:
        """Load the original with that number of neurons in each MLP."""
        return self._load(self.recipe.replace(d_mlp=d_mlp))

    def seconds(self) -> dict[str, float]:
        """Read how long each training loop took, in seconds, by a name of the model."""
        seconds = {}
        for recipe, folder in self.folders.items():
            removed = f" without {recipe.removed_fact[0]}" if recipe.removed_fact else ""
            name = f"seed {recipe.seed}, {recipe.d_mlp} neurons{removed}"
            seconds[name] = float(record(folder)["seconds"])
        return seconds

    def first(self) -> tuple[LanguageModel, ConceptPair]:
        """Load the first original, with the run's fact."""
        return self.original(), self.pairs[0]

    def _load(self, recipe: Recipe) -> LanguageModel:
        return load_model(str(self.folders[recipe]))


def parse_widths(text: str) -> tuple[int, ...]:
    """Parse numbers of neurons, as in "32, 128".

    Raises:
        UserError: One is no positive whole number.
    """
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdigit() and int(p) for p in parts):
        raise UserError(f"widths is '{text}': give whole numbers of neurons separated by commas.")
    return tuple(sorted({int(p) for p in parts}))
