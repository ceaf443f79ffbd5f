"""Keys within the span of an SAE's encoder rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.io.choices import check_choice
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.units import (
    ContrastiveSet,
    GatedUnits,
    discriminant,
    fit_unit,
    shrink_covariance,
)
from helpers.sae import SAE
from helpers.stats.auroc import auroc_by_unit

SELECTION_RULES = ("selective", "random", "untrained")


@dataclass(frozen=True)
class SAEKey:
    """A unit whose key is a weighted sum of encoder rows.

    Attributes:
        unit: The unit.
        latents: Numbers of the latents.
        weights: Weight of each latent's normalized encoder row in the key.
        auroc: AUROC of each latent's preactivation, positives against negatives.
    """

    unit: GatedUnits
    latents: Int[Tensor, " k"]
    weights: Float[Tensor, " k"]
    auroc: Float[Tensor, " k"]


def doubling_sizes(first: int, last: int) -> list[int]:
    """Return `first`, twice that, and so on, up to `last`."""
    sizes = [min(first, last)]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes


def fit_key(
    sae: SAE,
    data: ContrastiveSet,
    hparams: UnitEditHparams,
    *,
    sizes: Sequence[int],
    select: str,
    min_activation: float,
    seed: int,
) -> SAEKey:
    """Fit a unit whose key lies within the encoder rows of as few latents as are sufficient.

    Args:
        sae: The SAE.
        data: Positives and negatives of the unit.
        hparams: Hyperparameters of the unit.
        sizes: Numbers of latents to try in order; the last is used if none is sufficient.
        select: One of `SELECTION_RULES` (`rank_encoder_rows`).
        min_activation: The least margin on a positive, relative to the mean margin, from which on
            the latents are sufficient.
        seed: Seed that draws random latents.
    """
    rows, ranked = rank_encoder_rows(
        sae, data, n=sizes[-1], select=select, shrinkage=hparams.shrinkage, seed=seed
    )
    mean_difference = data.mean_difference()
    for n in sizes:
        span = rows[ranked[:n]]  # (n, d_model)
        wide = span.double()
        weights = discriminant(
            span @ mean_difference, wide @ data.cov @ wide.T, shrinkage=hparams.shrinkage
        )
        unit = fit_unit(weights @ span, data, hparams)
        margins = data.positives @ unit.keys[0] - unit.thresholds
        if margins.min() >= min_activation:
            break
    auroc = auroc_by_unit(data.positives @ span.T, data.negatives @ span.T)
    return SAEKey(unit, ranked[:n], weights, auroc)


@torch.inference_mode()
def rank_encoder_rows(
    sae: SAE, data: ContrastiveSet, *, n: int, select: str, shrinkage: float, seed: int
) -> tuple[Float[Tensor, "d_sae d_model"], Int[Tensor, " k"]]:
    """Rank the directions within whose span a key may lie.

    Args:
        sae: The SAE.
        data: Positives and negatives of the unit.
        n: Number of directions to rank.
        select: Rule: `selective` ranks encoder rows by `orthogonal_matching_pursuit`; `random`
            draws encoder rows; `untrained` ranks equally many random directions by
            `orthogonal_matching_pursuit`.
        shrinkage: Shrinkage of the negatives' covariance, relative to its mean variance.
        seed: Seed of the draws.

    Returns:
        All directions, of norm 1, and the numbers of the first `n`.

    Raises:
        UserError: There is no such rule.
    """
    check_choice("selection rule", select, SELECTION_RULES)
    generator = torch.Generator().manual_seed(seed)
    rows = sae.W_enc.detach().T.float()
    if select == "untrained":
        rows = torch.randn(rows.shape, generator=generator)
    rows = rows / rows.norm(dim=1, keepdim=True)
    if select == "random":
        return rows, torch.randperm(len(rows), generator=generator)[:n]
    ranked = orthogonal_matching_pursuit(
        rows, data.mean_difference(), data.cov, n=n, shrinkage=shrinkage
    )
    return rows, ranked


def orthogonal_matching_pursuit(
    rows: Float[Tensor, "m d"],
    mean_difference: Float[Tensor, " d"],
    cov: Float[Tensor, "d d"],
    *,
    n: int,
    shrinkage: float,
) -> Int[Tensor, " k"]:
    """Choose rows one after another, each the one that improves a discriminant in their span most.

    Fisher's ratio (w·δ)² / wᵀΣw, with δ the difference of the means, is at most the squared norm of
    Σ^(-½) δ. For w within the span of rows r it is the squared norm of that vector's projection on
    the Σ^½ r. So the next row is the one with the largest cosine to the residual: orthogonal
    matching pursuit (Pati et al. 1993).

    Args:
        rows: Directions, one a row.
        mean_difference: δ.
        cov: Σ, float64.
        n: Number of rows; at most as many as there are rows or dimensions.
        shrinkage: Shrinkage of Σ, relative to its mean variance.
    """
    root = torch.linalg.cholesky(shrink_covariance(cov, shrinkage))
    target = mean_difference.double()[:, None]
    residual = torch.linalg.solve_triangular(root, target, upper=False)[:, 0].float()
    atoms = rows @ root.float()
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    n = min(n, *rows.shape)
    basis, chosen = torch.zeros(n, len(mean_difference)), []
    is_free = torch.ones(len(atoms))
    for k in range(n):
        best = int(((atoms @ residual).abs() * is_free).argmax())
        new = atoms[best]
        for _ in range(2):  # Gram-Schmidt twice: the first pass leaves rounding errors
            new = new - (basis[:k] @ new) @ basis[:k]
        basis[k] = new / new.norm().clamp_min(1e-6)
        residual = residual - (basis[k] @ residual) * basis[k]
        chosen.append(best)
        is_free[best] = 0
    return torch.tensor(chosen)
