"""Kernel ridge regression on linearized constraints: the minimum-norm update of W_out."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import UserError
from helpers.methods.fitting.edit_constraint import EditConstraint
from helpers.methods.fitting.linear_model import Linearization

BLOCK = 1024  # rows whose products with all others are in memory at once
MIN_DIAGONAL = 1e-24  # a kernel below it comes from gradients that vanished
MIN_RELATIVE_DIAGONAL = 1e-12  # precision of float64: below it a row of the kernel counts as zero


@dataclass(frozen=True)
class WhitenedRows:
    """Rows of a linearization in coordinates in which both metrics are the identity.

    Attributes:
        n: Number of constraints.
        constraint_index: Number of each row's constraint.
        keys: Layer → L⁻¹k of each row, with A = LLᵀ the metric of inputs.
        gradients: Layer → N⁻¹g of each row, with M = NNᵀ the metric of outputs.
    """

    n: int
    constraint_index: Int[Tensor, " rows"]
    keys: dict[int, Float[Tensor, "width rows"]]
    gradients: dict[int, Float[Tensor, "rows d_model"]]

    @classmethod
    def of(
        cls,
        linearization: Linearization,
        factors: Mapping[int, Float[Tensor, "width width"]],
        output_factors: Mapping[int, Float[Tensor, "d_model d_model"]] | None = None,
    ) -> "WhitenedRows":
        """Whiten a linearization.

        Args:
            linearization: Keys and gradients.
            factors: Layer → lower Cholesky factor of A.
            output_factors: Layer → lower Cholesky factor of M; without it M is 1.
        """
        keys, gradients = {}, dict(linearization.gradients)
        for i, k in linearization.keys.items():
            keys[i] = torch.linalg.solve_triangular(factors[i], k.T, upper=False)
            if output_factors:
                g = gradients[i].T
                gradients[i] = torch.linalg.solve_triangular(output_factors[i], g, upper=False).T
        return cls(len(linearization.logodds), linearization.constraint_index, keys, gradients)

    @cached_property
    def own_kernel(self) -> Float[Tensor, "n n"]:
        """K_ij = Σ_l Σ_pq (g_ip · g_jq)(k_ip · k_jq) in float64, computed once.

        The products of rows are symmetric: each block of rows meets itself and those after it.
        """
        kernel = torch.zeros(self.n, self.n, dtype=torch.float64)
        rows = range(0, len(self.constraint_index), BLOCK)
        for start in rows:
            block, later = slice(start, start + BLOCK), slice(start + BLOCK, None)
            kernel += self._products(self, block, block)
            with_later = self._products(self, block, later)
            kernel += with_later + with_later.T
        return kernel

    def kernel_with(self, other: "WhitenedRows") -> Float[Tensor, "n m"]:
        """Compute the kernel of these constraints with another's, in float64."""
        return self._products(other, slice(None), slice(None))

    def _products(self, other: "WhitenedRows", own: slice, others: slice) -> Tensor:
        """Sum the products of some rows with some of another's over layers and constraints."""
        index, other_index = self.constraint_index[own], other.constraint_index[others]
        by_row = torch.zeros(len(index), len(other_index))
        for i, keys in self.keys.items():
            gradients = self.gradients[i][own] @ other.gradients[i][others].T
            by_row += gradients * (keys[:, own].T @ other.keys[i][:, others])
        # Rows of one constraint add up: its log-odds depend on all its positions.
        summed = torch.zeros(self.n, len(other_index), dtype=torch.float64)
        summed.index_add_(0, index, by_row.double())
        return torch.zeros(self.n, other.n, dtype=torch.float64).index_add_(1, other_index, summed)


def min_norm_update(
    parts: Sequence[WhitenedRows],
    target: Float[Tensor, " n"],
    factors: Mapping[int, Float[Tensor, "width width"]],
    *,
    ridge: float,
    constraints: Sequence[EditConstraint],
    output_factors: Mapping[int, Float[Tensor, "d_model d_model"]] | None = None,
) -> dict[int, Float[Tensor, "d_model width"]]:
    """Compute the ΔW of least Σ_l tr(M_l ΔW_l A_l ΔW_lᵀ) that changes the log-odds by `target`.

    α = (K + Λ)⁻¹ target with K_ij = Σ_l Σ_pq (g_ipᵀ M_l⁻¹ g_jq)(k_ipᵀ A_l⁻¹ k_jq), and
    ΔW_l = Σ_i α_i Σ_p M_l⁻¹ g_ip (A_l⁻¹ k_ip)ᵀ: kernel ridge regression with the tangent kernel.

    Args:
        parts: The constraints' rows, in the order of the constraints. A part that stays the same
            from step to step keeps its own kernel, the most of the work.
        target: Changes of log-odds, in nats.
        factors: Layer → lower Cholesky factor of A_l.
        ridge: Λ, relative to each constraint's own K_ii; 0 reaches `target` exactly.
        constraints: The constraints, for the message.
        output_factors: Layer → lower Cholesky factor of M_l; without it M_l is 1.

    Raises:
        UserError: The system is singular; names the prompts that coincide.
    """
    above = {
        (a, b): parts[a].kernel_with(parts[b])
        for a, b in itertools.combinations(range(len(parts)), 2)
    }
    numbers = range(len(parts))
    kernel = torch.cat(
        [
            torch.cat(
                [
                    parts[a].own_kernel if a == b else above[a, b] if a < b else above[b, a].T
                    for b in numbers
                ],
                dim=1,
            )
            for a in numbers
        ]
    )
    alpha = fit_kernel_ridge(kernel, target.double(), ridge=ridge, constraints=constraints).float()
    of_parts = alpha.split([part.n for part in parts])
    update = {}
    for i in parts[0].keys:
        products = [
            part.keys[i] @ (own_alpha[part.constraint_index, None] * part.gradients[i])
            for part, own_alpha in zip(parts, of_parts, strict=True)
        ]
        product = torch.stack(products).sum(0)  # (width, d_model)
        update[i] = torch.linalg.solve_triangular(factors[i].T, product, upper=True).T
        if output_factors:
            update[i] = torch.linalg.solve_triangular(output_factors[i].T, update[i], upper=True)
    return update


def fit_kernel_ridge(
    kernel: Float[Tensor, "n n"],
    target: Float[Tensor, " n"],
    *,
    ridge: float | Float[Tensor, " n"],
    constraints: Sequence[EditConstraint],
) -> Float[Tensor, " n"]:
    """Compute α = (K + Λ)⁻¹ target in float64, with Λ = `ridge` times K's diagonal.

    Args:
        kernel: K, float64.
        target: Changes of log-odds, in nats, float64.
        ridge: One number, or one for each constraint.
        constraints: The constraints, for the message.

    Raises:
        UserError: K + Λ is singular; names the two prompts that are most alike. Or an earlier step
            diverged, or the model's type overflows.
    """
    advice = "smaller step_sizes, a target_prob closer to the present probability, or other layers"
    if not torch.isfinite(kernel).all():
        raise UserError(
            "The model's numbers are not finite: its type overflows, or the steps diverged. Load "
            f"the model as float32 if it is not; if it is, take {advice}."
        )
    if not kernel.diagonal().max() > MIN_DIAGONAL:
        raise UserError(
            f"No change moves the answers (any more): the steps diverged. Take {advice}."
        )
    diagonal = kernel.diagonal()
    # Constraints that no change reaches would make the system singular: they are left out.
    is_movable = diagonal > MIN_RELATIVE_DIAGONAL * diagonal.max()
    index = is_movable.nonzero()[:, 0]
    K = kernel[index][:, index]
    factor, failed = torch.linalg.cholesky_ex(K + torch.diag((ridge * diagonal)[index]))
    smallest_pivot = factor.diagonal().min() ** 2
    if failed or smallest_pivot < MIN_RELATIVE_DIAGONAL * diagonal[index].min():
        scale = diagonal[index].rsqrt()
        cosines = (K * scale[:, None] * scale).abs().fill_diagonal_(0)
        a, b = (int(index[i]) for i in divmod(int(cosines.argmax()), len(index)))
        raise UserError(
            f"The edit cannot tell two prompts apart: '{constraints[a].name}' and "
            f"'{constraints[b].name}' coincide. Drop one of them, or raise the damping (or ridge)."
        )
    alpha = torch.zeros_like(target)
    alpha[index] = torch.cholesky_solve(target[index, None], factor)[:, 0]
    return alpha
