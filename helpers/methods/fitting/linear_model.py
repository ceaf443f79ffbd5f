"""The first-order model of answers' log-odds in W_out: a row for each constraint and position."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Linearization:
    """Log-odds of constraints with their keys and gradients at some layers.

    A row is one constraint at one of its edit positions.

    Attributes:
        logodds: Log-odds of each constraint, in nats.
        constraint_index: Number of each row's constraint.
        keys: Layer → input of W_out (or of W_in) at each row.
        gradients: Layer → gradient of the constraint's log-odds with respect to W_out's output.
    """

    logodds: Float[Tensor, " n"]
    constraint_index: Int[Tensor, " rows"]
    keys: dict[int, Float[Tensor, "rows width"]]
    gradients: dict[int, Float[Tensor, "rows d_model"]]

    def without_small_rows(self, min_size: float) -> "Linearization":
        """Leave out rows whose gradient is small, to save what grows with the rows squared.

        A row's size is √Σ_l ‖g_l‖² ‖k_l‖², the norm of its part of the constraint's gradient in W.

        Args:
            min_size: Least size, relative to the constraint's largest row.
        """
        squares = torch.stack(
            [g.square().sum(1) * self.keys[i].square().sum(1) for i, g in self.gradients.items()]
        )
        size, index = squares.sum(0).sqrt(), self.constraint_index
        largest = torch.zeros(len(self.logodds)).scatter_reduce(0, index, size, "amax")
        return self._with_rows(size >= min_size * largest[index], self.logodds)

    def predicted_change(
        self, delta: Mapping[int, Float[Tensor, "d_model width"]]
    ) -> Float[Tensor, " n"]:
        """Predict each constraint's change of log-odds by changes of W_out, to first order."""
        total = torch.zeros(len(self.logodds))
        for i, change in delta.items():
            by_row = ((self.keys[i] @ change.T) * self.gradients[i]).sum(1)
            total.index_add_(0, self.constraint_index, by_row)
        return total

    def first(self, n: int) -> "Linearization":
        """Return the linearization of the first `n` constraints."""
        return self._with_rows(self.constraint_index < n, self.logodds[:n])

    def _with_rows(
        self, rows: Bool[Tensor, " rows"], logodds: Float[Tensor, " n"]
    ) -> "Linearization":
        """Return some of the rows."""
        return Linearization(
            logodds,
            self.constraint_index[rows],
            {i: k[rows] for i, k in self.keys.items()},
            {i: g[rows] for i, g in self.gradients.items()},
        )

    def followed_by(self, other: "Linearization") -> "Linearization":
        """Return this linearization with the other's constraints after its own."""
        return Linearization(
            torch.cat([self.logodds, other.logodds]),
            torch.cat([self.constraint_index, other.constraint_index + len(self.logodds)]),
            {i: torch.cat([k, other.keys[i]]) for i, k in self.keys.items()},
            {i: torch.cat([g, other.gradients[i]]) for i, g in self.gradients.items()},
        )
