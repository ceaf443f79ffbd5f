"""What decides an organism to the bit: its world, its text, its size, its training, its seed."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.code_version import code_hash
from helpers.io.hashing import content_hash
from helpers.organism.countries import FactSet, world

FIT = Path(__file__).with_name("fit.py")


@dataclass(frozen=True)
class Recipe:
    """How an organism is made.

    Attributes:
        n_countries: Size of its world: the first of `COUNTRIES`.
        also: Further countries.
        d_model: Width of the residual stream.
        d_mlp: Hidden neurons of each MLP.
        n_layers: Blocks.
        n_heads: Attention heads of a block.
        n_vocab: Tokens of its tokenizer.
        rounds: How often each fact is said.
        n_passages: Different passages of running text.
        batch: Sentences a step.
        lr: Largest learning rate times `d_model`: wider models take smaller steps.
        seed: Of the weights at the start, the wordings drawn, and the order.
        without: Subject, target and relation of the fact that an oracle never saw; None for the
            original.
    """

    n_countries: int = 32
    also: tuple[str, ...] = ()
    d_model: int = 64
    d_mlp: int = 256
    n_layers: int = 3
    n_heads: int = 4
    n_vocab: int = 2048
    rounds: int = 120
    n_passages: int = 400
    batch: int = 16
    lr: float = 0.32
    seed: int = 0
    without: tuple[str, str, str] | None = None

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
        for name in ("d_model", "d_mlp", "n_layers", "n_heads", "rounds", "n_passages", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if self.n_vocab < 300:
            raise UserError(f"n_vocab is {self.n_vocab}: 256 bytes and some words need 300.")

    def world(self) -> FactSet:
        """What it is taught."""
        return world(self.n_countries, self.also)

    def oracle(self, pair: ConceptPair) -> "Recipe":
        """The same without `pair`.

        Raises:
            UserError: The pair is not in the training facts.
        """
        own = self.world().find(pair)
        return replace(self, without=(own.subject, own.target, own.relation))

    def but(self, **changes) -> "Recipe":
        """The same with other values."""
        return replace(self, **changes)

    def key(self) -> dict:
        """Everything that the weights depend on, for the cache."""
        facts = [(p.subject, p.target, p.relation) for p in self.world().pairs]
        return {**asdict(self), "facts": content_hash(facts), "code": code_hash(FIT)}
