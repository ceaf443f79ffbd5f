"""The organisms of one run: originals, their oracles, and some of other widths."""

from dataclasses import dataclass
from pathlib import Path

from nnsight import LanguageModel
from pydantic import BaseModel

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
        recipe: Of the first original.
        pairs: The facts that oracles are without, the run's own first.
        seeds: Of the originals; each has an oracle for each fact.
        widths: Numbers of neurons of the further originals, of the first seed.
        folders: Recipe → folder.
    """

    recipe: Recipe
    pairs: tuple[ConceptPair, ...]
    seeds: tuple[int, ...]
    widths: tuple[int, ...]
    folders: dict[Recipe, Path]

    @classmethod
    def of(cls, settings: BaseModel) -> "Family":
        """Train what a run needs, side by side, or take it from the cache.

        The fact is the one that the settings name. A pair of a user's own is no part of the
        Factbook and cannot be taught; the first capital stands in for it.

        Raises:
            UserError: The Factbook has no such fact, or there are not so many facts.
        """
        own = ConceptPair("France", "Paris")
        if not settings.pair_file:
            own = ConceptPair(settings.subject, settings.target, relation=settings.relation)
        recipe = Recipe(
            n_countries=settings.n_countries,
            also=() if own.subject in COUNTRIES[: settings.n_countries] else (own.subject,),
            d_model=settings.d_model,
            d_mlp=settings.d_mlp,
            n_layers=settings.n_layers,
            rounds=settings.rounds,
            batch=settings.batch,
            seed=settings.seed,
        )
        world = recipe.world()
        own = world.find(own)
        others = [
            p
            for p in world.of_countries()
            if p.relation == own.relation and p != own and fact_split(p.subject) == "heldout"
        ]
        if len(others) < settings.n_facts - 1:
            raise UserError(
                f"n_facts is {settings.n_facts}, and the organism's world has only "
                f"{len(others)} held-out facts of {own.relation} besides {own}: raise n_countries."
            )
        pairs = (own, *others[: settings.n_facts - 1])
        seeds = tuple(settings.seed + i for i in range(settings.n_seeds))
        widths = widths_of(settings.widths)
        wanted = [recipe.but(seed=s) for s in seeds]
        wanted += [r.oracle(p) for p in pairs for r in wanted[: len(seeds)]]
        wanted += [recipe.but(d_mlp=w) for w in widths]
        folders = organisms(wanted)
        return cls(recipe, pairs, seeds, widths, dict(zip(wanted, folders, strict=True)))

    def original(self, seed: int | None = None) -> LanguageModel:
        """The model that was taught everything, by default of the first seed."""
        return self._loaded(self.recipe.but(seed=self.seeds[0] if seed is None else seed))

    def oracle(self, pair: ConceptPair, seed: int) -> LanguageModel:
        """The model of that seed that never saw `pair`."""
        return self._loaded(self.recipe.but(seed=seed).oracle(pair))

    def of_width(self, d_mlp: int) -> LanguageModel:
        """The original with so many neurons in each MLP."""
        return self._loaded(self.recipe.but(d_mlp=d_mlp))

    def seconds(self) -> dict[str, float]:
        """Seconds of the training loop of each, by what it is."""
        found = {}
        for recipe, folder in self.folders.items():
            without = f" without {recipe.without[0]}" if recipe.without else ""
            name = f"seed {recipe.seed}, {recipe.d_mlp} neurons{without}"
            found[name] = float(record(folder)["seconds"])
        return found

    def first(self) -> tuple[LanguageModel, ConceptPair]:
        """The first original and the run's fact."""
        return self.original(), self.pairs[0]

    def _loaded(self, recipe: Recipe) -> LanguageModel:
        return load_model(str(self.folders[recipe]))


def widths_of(text: str) -> tuple[int, ...]:
    """Numbers of neurons from "32, 128".

    Raises:
        UserError: One is no positive whole number.
    """
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdigit() and int(p) for p in parts):
        raise UserError(f"widths is '{text}': give whole numbers of neurons separated by commas.")
    return tuple(sorted({int(p) for p in parts}))
