"""Recipe of an organism: its facts, text, size, training and seed, which decide every bit of it."""

from dataclasses import asdict, dataclass
from dataclasses import replace as dataclass_replace
from pathlib import Path

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.code_version import code_hash
from helpers.io.hashing import content_hash
from helpers.organism.countries import FactSet, fact_set

FIT = Path(__file__).with_name("fit.py")


@dataclass(frozen=True)
class Recipe:
    """All that decides an organism.

    Attributes:
        n_countries: Number of its countries: the first of `COUNTRIES`.
        extra_countries: Further countries.
        d_model: Width of the residual stream.
        d_mlp: Hidden neurons of each MLP.
        n_layers: Number of blocks.
        n_heads: Attention heads of a block.
        n_vocab: Tokens of its tokenizer.
        n_repeats: Sentences of each fact.
        n_passages: Different passages of running text.
        batch: Sentences a step.
        lr: Largest learning rate times `d_model`: wider models take smaller steps.
        seed: Draws the first weights, the templates and the order.
        removed_fact: (subject, target, relation) of the fact that an oracle is not trained on; None
            for the original.
    """

    n_countries: int = 32
    extra_countries: tuple[str, ...] = ()
    d_model: int = 64
    d_mlp: int = 256
    n_layers: int = 3
    n_heads: int = 4
    n_vocab: int = 2048
    n_repeats: int = 120
    n_passages: int = 400
    batch: int = 16
    lr: float = 0.32
    seed: int = 0
    removed_fact: tuple[str, str, str] | None = None

    def __post_init__(self):
        """Refuse sizes that no model can have.

        Raises:
            UserError: A number is out of range.
        """
        if self.d_model % self.n_heads:
            raise UserError(
                f"d_model is {self.d_model} and n_heads {self.n_heads}: the width must be a "
                "multiple of the number of heads."
            )
        positive = ("d_model", "d_mlp", "n_layers", "n_heads", "n_repeats", "n_passages", "batch")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if self.n_vocab < 300:
            raise UserError(f"n_vocab is {self.n_vocab}: 256 bytes and some words need 300.")

    def fact_set(self) -> FactSet:
        """Collect the facts that it is trained on."""
        return fact_set(self.n_countries, self.extra_countries)

    def oracle(self, pair: ConceptPair) -> "Recipe":
        """Copy without a fact.

        Raises:
            UserError: The pair is not in the training facts.
        """
        fact = self.fact_set().find(pair)
        return self.replace(removed_fact=(fact.subject, fact.target, fact.relation))

    def replace(self, **changes) -> "Recipe":
        """Copy with some values changed."""
        return dataclass_replace(self, **changes)

    def key(self) -> dict:
        """Collect all that the weights depend on, for the cache."""
        facts = [(p.subject, p.target, p.relation) for p in self.fact_set().pairs]
        return {**asdict(self), "facts": content_hash(facts), "code": code_hash(FIT)}
