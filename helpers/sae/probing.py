"""How well single units detect concepts: AUROC and F1 of every unit for every concept.

A unit is anything with one number a token: a latent, a neuron, a direction. It is *chosen* for a
concept on training data and *judged* on held-out data, since the best of many is partly the
luckiest. The idea is sparse probing with k = 1 (Gurnee et al. 2023, "Finding Neurons in a
Haystack"; SAEBench, Karvonen et al. 2025).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import UserError

UNITS = 512  # units sorted at a time: what is sorted stays in the cache


@dataclass(frozen=True)
class Scores:
    """Every unit as a detector of every concept.

    Attributes:
        auroc: Probability that the unit is higher on the concept than elsewhere, (concepts, units).
        f1: The best F1 that a threshold reaches, (concepts, units).
        threshold: This threshold: the concept is told at values from it on.
    """

    auroc: Float[Tensor, "concepts units"]
    f1: Float[Tensor, "concepts units"]
    threshold: Float[Tensor, "concepts units"]


@torch.inference_mode()
def score_units(values: Float[Tensor, "n units"], inside: Float[Tensor, "concepts n"]) -> Scores:
    """AUROC and best F1 of each unit for each concept; each unit is sorted once for all concepts.

    AUROC from the sum of midranks (Mann & Whitney 1947). F1 is 2 TP / (TP + FP + positives), its
    maximum over thresholds at distinct values above the smallest.

    Raises:
        UserError: A concept has no sighting, or all sightings are its own.
    """
    n, positives = inside.shape[1], inside.sum(1)  # (concepts,)
    if not len(inside) or positives.min() < 1 or positives.max() >= n:
        raise UserError(
            "A detector is judged on tokens with the concept and tokens without: one of the two "
            "is missing for a concept."
        )
    parts = [_score(part, inside, positives) for part in values.split(UNITS, dim=1)]
    return Scores(*(torch.cat(p, 1) for p in zip(*parts, strict=True)))


def _score(values: Tensor, inside: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = len(values)
    ordered, order = values.T.contiguous().sort(dim=1, descending=True)  # (units, n)
    ends = torch.ones_like(ordered, dtype=torch.bool)  # the last of each run of equal values
    ends[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    starts = torch.cat([torch.ones_like(ends[:, :1]), ends[:, :-1]], 1)
    index = torch.arange(n)
    last = torch.where(ends, index, n).flip(1).cummin(1).values.flip(1)
    first = torch.where(starts, index, 0).cummax(1).values
    midrank = n - (first + last).float() / 2  # 1 for the smallest, n for the largest
    ranks = torch.empty_like(midrank).scatter_(1, order, midrank)
    sums = inside @ ranks.T  # (concepts, units)
    chance = (positives * (positives + 1) / 2)[:, None]
    auroc = (sums - chance) / (positives * (n - positives))[:, None]
    # The best threshold is the value of one of the concept's own sightings: any lower one that is
    # not only adds false alarms. `told` is how many sightings are told at the value of each.
    told = torch.empty_like(last).scatter_(1, order, last + 1)  # (units, n)
    f1, threshold = [], []
    for members in inside.bool():
        at, where = told[:, members].sort(dim=1)  # (units, m), the highest first
        hits = torch.arange(1, at.shape[1] + 1)
        best = torch.where(at < n, 2 * hits / (at + at.shape[1]), 0.0).max(1)
        row = where.gather(1, best.indices[:, None])
        f1.append(best.values)
        threshold.append(values[members].T.gather(1, row)[:, 0])
    return auroc, torch.stack(f1), torch.stack(threshold)


def f1_at(
    told: Float[Tensor, "*concepts n"], inside: Float[Tensor, "*concepts n"]
) -> Float[Tensor, "*concepts"]:
    """F1 of what was told against what is."""
    hits = (told * inside).sum(-1)
    return 2 * hits / (told.sum(-1) + inside.sum(-1)).clamp_min(1)


def both_signs(values: Float[Tensor, "n units"]) -> Float[Tensor, "n twice"]:
    """Units that may tell a concept by being low as well: each counts as two detectors."""
    return torch.cat([values, -values], 1)


@torch.inference_mode()
def discriminants(
    x: Float[Tensor, "n d"], inside: Float[Tensor, "concepts n"], *, ridge: float = 0.1
) -> Float[Tensor, "d concepts"]:
    """For each concept the direction that a label would choose: Fisher's linear discriminant.

    Σ⁻¹(μ_concept − μ), with `ridge` times the mean variance added to the covariance Σ. What no
    search among given units can be expected to beat.
    """
    means = inside @ x / inside.sum(1, keepdim=True)
    spread = torch.cov(x.T) + ridge * x.var(0).mean() * torch.eye(x.shape[1])
    return torch.linalg.solve(spread, (means - x.mean(0)).T)


@torch.inference_mode()
def select_and_evaluate(
    train: Scores,
    values: Float[Tensor, "n units"],
    inside: Float[Tensor, "concepts n"],
    *,
    candidates: Int[np.ndarray, " m"] | None = None,
) -> pd.DataFrame:
    """The best unit of each concept on training data, judged on held-out data.

    Args:
        train: Scores on the training sightings.
        values: The same units on the held-out sightings.
        inside: Which held-out sightings are of which concept.
        candidates: Units to choose among, all by default.

    Returns:
        One row a concept: unit and auroc (chosen by training AUROC), f1_unit and f1 (chosen by
        training F1, told by its training threshold), train_auroc, train_f1, f1_threshold.
    """
    among = torch.arange(values.shape[1]) if candidates is None else torch.as_tensor(candidates)
    unit = among[train.auroc[:, among].argmax(1)]
    f1_unit = among[train.f1[:, among].argmax(1)]
    concepts = torch.arange(len(inside))
    threshold = train.threshold[concepts, f1_unit]
    told = (threshold[:, None] <= values[:, f1_unit].T).float()
    return pd.DataFrame(
        {
            "unit": unit.numpy(),
            "auroc": _auroc_of(values[:, unit].T, inside).numpy(),
            "f1_unit": f1_unit.numpy(),
            "f1": f1_at(told, inside).numpy(),
            "train_auroc": train.auroc[concepts, unit].numpy(),
            "train_f1": train.f1[concepts, f1_unit].numpy(),
            "f1_threshold": threshold.numpy(),
        }
    )


def _auroc_of(values: Tensor, inside: Tensor) -> Tensor:
    """AUROC of one unit for each concept: (concepts, n) both."""
    found = []
    for row, members in zip(values, inside.bool(), strict=True):
        outside = row[~members].sort().values
        below = torch.searchsorted(outside, row[members].contiguous())
        upto = torch.searchsorted(outside, row[members].contiguous(), right=True)
        found.append((below + upto).float().mean() / (2 * len(outside)))
    return torch.stack(found)
