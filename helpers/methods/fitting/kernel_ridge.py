"""Kernel ridge regression on linearized constraints: the minimum-norm update of W_out."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.methods.fitting.edit_constraint import EditConstraint
from helpers.methods.fitting.linear_model import Linearization

MIN_DIAGONAL = 1e-24  # a kernel below it comes from gradients that vanished
MIN_RELATIVE_DIAGONAL = 1e-12  # precision of float64: below it a row of the kernel counts as zero


def min_norm_update(
    linearization: Linearization,
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
        linearization: Keys and gradients.
        target: Changes of log-odds, in nats.
        factors: Layer → lower Cholesky factor of A_l.
        ridge: Λ, relative to each constraint's own K_ii; 0 reaches `target` exactly.
        constraints: The constraints, for the message.
        output_factors: Layer → lower Cholesky factor of M_l; without it M_l is 1.

    Raises:
        UserError: The system is singular; names the prompts that coincide.
    """
    n, index = len(target), linearization.constraint_index
    kernel = torch.zeros(n, n, dtype=torch.float64)
    whitened = {}
    for i, keys in linearization.keys.items():
        # In whitened coordinates L⁻¹k the metric A = LLᵀ is the identity.
        white = torch.linalg.solve_triangular(factors[i], keys.T, upper=False)  # (width, rows)
        g = linearization.gradients[i]
        if output_factors:
            g = torch.linalg.solve_triangular(output_factors[i], g.T, upper=False).T
        whitened[i] = white, g
        by_row = ((g @ g.T) * (white.T @ white)).double()  # (rows, rows)
        # Rows of one constraint add up: its log-odds depend on all its positions.
        summed = torch.zeros(n, by_row.shape[1], dtype=torch.float64)
        summed.index_add_(0, index, by_row)
        kernel.index_add_(1, index, summed)
    alpha = fit_kernel_ridge(kernel, target.double(), ridge=ridge, constraints=constraints)
    alpha = alpha[index].float()  # (rows,)
    update = {}
    for i, (white, g) in whitened.items():
        product = white @ (alpha[:, None] * g)  # (width, d_model)
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
            diverged.
    """
    if not torch.isfinite(kernel).all() or not kernel.diagonal().max() > MIN_DIAGONAL:
        raise UserError(
            "No change moves the answers (any more): the steps diverged. Take smaller step_sizes, "
            "a target_prob closer to the present probability, or other layers."
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
