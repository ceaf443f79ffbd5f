"""A constraint of an edit: one answer's log-odds, to be lowered or held, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

TargetTokens = tuple[tuple[int, tuple[int, ...]], ...]
"""(position, tokens) pairs: the tokens that may follow each position."""


class LensReading(NamedTuple):
    """A reading by the logit lens: logit of the answer less the mean logit of other tokens.

    Attributes:
        layer: Layer after which the residual stream is read.
        position: Position of the token at which it is read.
        against: The other tokens.
    """

    layer: int
    position: int
    against: tuple[int, ...]


Run = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]
"""Token ids, layers left out, and neurons that are cut."""


@dataclass(frozen=True)
class EditConstraint:
    """An answer whose log-odds an edit lowers or holds.

    Attributes:
        ids: Tokens of the prompt, and of the answer without its last token.
        target_tokens: (position, tokens) pairs; the answer's log-probability sums log P(next token
            in `tokens`) over them.
        edit_positions: Positions where the edit is active; gradients elsewhere are discarded.
        target_logodds: Log-odds to come down to, in nats; None holds the present ones.
        name: Name of the prompt for messages.
        weight: Weight in the cost of `fit_values_lm`, up to 1.
        left_out: Layers, from the first edited one up, whose neurons are all at zero: the answer
            has to be gone without their MLPs too.
        cut_neurons: Single neurons at zero: (layer, neuron) pairs.
        lens: Reads the answer inside the model instead; `target_logodds` is then in logits.
    """

    ids: tuple[int, ...]
    target_tokens: TargetTokens
    edit_positions: tuple[int, ...]
    target_logodds: float | None = None
    name: str = ""
    weight: float = 1.0
    left_out: tuple[int, ...] = ()
    cut_neurons: tuple[tuple[int, int], ...] = ()
    lens: LensReading | None = None

    @property
    def run(self) -> "Run":
        """Name all that a forward pass depends on."""
        return self.ids, self.left_out, self.cut_neurons


def at_all_positions(constraints: Sequence[EditConstraint]) -> list[EditConstraint]:
    """Return the same constraints with the edit active at every position."""
    return [replace(c, edit_positions=tuple(range(len(c.ids)))) for c in constraints]
