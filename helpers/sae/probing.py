"""Sparse probing with single units: AUROC and F1 of every unit for every concept.

A unit is anything with one number a token: a latent, a neuron, a direction. It is *selected* for a
concept on training data and *evaluated* on held-out data, since the best of many is partly the
luckiest. This is sparse probing with k = 1 (Gurnee et al. 2023, "Finding Neurons in a Haystack";
SAEBench, Karvonen et al. 2025).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import UserError
from helpers.stats.auroc import auroc_by_unit

UNIT_BATCH = 512  # units sorted at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class UnitScores:
    """Scores of every unit as a detector of every concept.

    Attributes:
        auroc: Probability that the unit is higher on the concept than elsewhere, (concepts, units).
        f1: Highest F1 over thresholds, (concepts, units).
        threshold: That threshold; values from it on are predicted positive, (concepts, units).
    """

    auroc: Float[Tensor, "concepts units"]
    f1: Float[Tensor, "concepts units"]
    threshold: Float[Tensor, "concepts units"]


@torch.inference_mode()
def score_units(
    values: Float[Tensor, "n units"], labels: Float[Tensor, "concepts n"]
) -> UnitScores:
    """Compute AUROC and highest F1 of each unit for each concept; each unit is sorted once.

    AUROC is computed from the sum of midranks (Mann & Whitney 1947). F1 is
    2 TP / (TP + FP + positives), its maximum over thresholds at distinct values above the smallest.

    Args:
        values: Each unit at each token.
        labels: 1 where a token is of the concept, else 0.

    Raises:
        UserError: A concept has no token, or all tokens are its own.
    """
    n, n_positive = labels.shape[1], labels.sum(1)  # (concepts,)
    if not len(labels) or n_positive.min() < 1 or n_positive.max() >= n:
        raise UserError(
            "A detector is judged on tokens with the concept and tokens without: one of the two "
            "is missing for a concept."
        )
    parts = [_score(part, labels, n_positive) for part in values.split(UNIT_BATCH, dim=1)]
    return UnitScores(*(torch.cat(p, 1) for p in zip(*parts, strict=True)))


def _score(values: Tensor, labels: Tensor, n_positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (auroc, f1, threshold) of some units, each (concepts, units)."""
    n = len(values)
    ordered, order = values.T.contiguous().sort(dim=1, descending=True)  # (units, n)
    # Runs of equal values share their mean rank: find the first and the last of each run.
    ends = torch.ones_like(ordered, dtype=torch.bool)
    ends[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    starts = torch.cat([torch.ones_like(ends[:, :1]), ends[:, :-1]], 1)
    index = torch.arange(n)
    last = torch.where(ends, index, n).flip(1).cummin(1).values.flip(1)
    first = torch.where(starts, index, 0).cummax(1).values
    midrank = n - (first + last).float() / 2  # 1 for the smallest, n for the largest
    ranks = torch.empty_like(midrank).scatter_(1, order, midrank)
    rank_sums = labels @ ranks.T  # (concepts, units)
    # Mann & Whitney's U: the rank sum less its smallest value, over the number of pairs.
    smallest = (n_positive * (n_positive + 1) / 2)[:, None]
    auroc = (rank_sums - smallest) / (n_positive * (n - n_positive))[:, None]
    # The best threshold is the value of one of the concept's own tokens: any lower one that is not
    # only adds false positives.
    n_predicted = torch.empty_like(last).scatter_(1, order, last + 1)  # with that value, (units, n)
    f1, threshold = [], []
    for members in labels.bool():
        predicted, member = n_predicted[:, members].sort(dim=1)  # (units, m), highest value first
        hits = torch.arange(1, predicted.shape[1] + 1)
        best = torch.where(predicted < n, 2 * hits / (predicted + predicted.shape[1]), 0.0).max(1)
        row = member.gather(1, best.indices[:, None])
        f1.append(best.values)
        threshold.append(values[members].T.gather(1, row)[:, 0])
    return auroc, torch.stack(f1), torch.stack(threshold)


def f1_score(
    predicted: Float[Tensor, "*concepts n"], labels: Float[Tensor, "*concepts n"]
) -> Float[Tensor, "*concepts"]:
    """Compute F1 of predictions (0 or 1) against labels (0 or 1)."""
    hits = (predicted * labels).sum(-1)
    return 2 * hits / (predicted.sum(-1) + labels.sum(-1)).clamp_min(1)


def with_negated(values: Float[Tensor, "n units"]) -> Float[Tensor, "n twice"]:
    """Append every unit's negative, so that units may detect a concept by being low as well."""
    return torch.cat([values, -values], 1)


@torch.inference_mode()
def lda_directions(
    x: Float[Tensor, "n d"], labels: Float[Tensor, "concepts n"], *, ridge: float = 0.1
) -> Float[Tensor, "d concepts"]:
    """Compute each concept's direction by linear discriminant analysis, Σ⁻¹(μ_concept − μ).

    It knows the labels, so no search among given units can be expected to do better.

    Args:
        x: Activations.
        labels: 1 where a token is of the concept, else 0.
        ridge: Times the mean variance, what is added to the covariance's diagonal.
    """
    means = labels @ x / labels.sum(1, keepdim=True)
    covariance = torch.cov(x.T) + ridge * x.var(0).mean() * torch.eye(x.shape[1])
    return torch.linalg.solve(covariance, (means - x.mean(0)).T)


@torch.inference_mode()
def select_and_evaluate(
    train: UnitScores,
    values: Float[Tensor, "n units"],
    labels: Float[Tensor, "concepts n"],
    *,
    candidates: Int[np.ndarray, " m"] | None = None,
) -> pd.DataFrame:
    """Select each concept's best unit on training data and evaluate it on held-out data.

    Args:
        train: Scores on the training tokens.
        values: The same units at the held-out tokens.
        labels: 1 where a held-out token is of the concept, else 0.
        candidates: Units to select from, all by default.

    Returns:
        One row a concept: unit and auroc (selected by training AUROC), f1_unit and f1 (selected by
        training F1, predicted by its training threshold), train_auroc, train_f1, f1_threshold.
    """
    units = torch.arange(values.shape[1]) if candidates is None else torch.as_tensor(candidates)
    unit = units[train.auroc[:, units].argmax(1)]
    f1_unit = units[train.f1[:, units].argmax(1)]
    concepts = torch.arange(len(labels))
    threshold = train.threshold[concepts, f1_unit]
    predicted = (threshold[:, None] <= values[:, f1_unit].T).float()
    aurocs = [
        auroc_by_unit(selected[members, None], selected[~members, None])
        for selected, members in zip(values[:, unit].T, labels.bool(), strict=True)
    ]
    return pd.DataFrame(
        {
            "unit": unit.numpy(),
            "auroc": torch.cat(aurocs).numpy(),
            "f1_unit": f1_unit.numpy(),
            "f1": f1_score(predicted, labels).numpy(),
            "train_auroc": train.auroc[concepts, unit].numpy(),
            "train_f1": train.f1[concepts, f1_unit].numpy(),
            "f1_threshold": threshold.numpy(),
        }
    )
