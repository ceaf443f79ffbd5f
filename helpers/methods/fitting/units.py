"""Neurons that detect a subject: a direction, a threshold and a ceiling on what the MLP reads.

Two neurons of one key make a detector: the second takes away what the first has above the ceiling.
What is written is then the same wherever the subject is read clearly; one neuron alone writes twice
as much where a wording drives it twice as far, and what was solved for is no longer what happens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.models import MLPArchitecture

MIN_RECALL = 0.5  # a detector has to fire on so many of the subject's own prompts
MIN_MARGIN = 0.02  # and by this share of the distance from what it sees elsewhere
GAIN = 20.0  # how steep the nonlinearity is driven: SiLU and GELU then are nearly ReLU
SATURATION = 0.5  # of the mean margin of the subject's own prompts: from there on it is constant


@dataclass(frozen=True)
class GatedUnits:
    """Detectors of one layer, from 0 to 1: (A(e·x − θ) − A(e·x − θ − c)) / c.

    A(z) = act(s z) / s, c the ceiling: each is two neurons, before what they write is known.

    Attributes:
        keys: e, a row each, scaled so that e·x − θ averages 1 where it should fire.
        thresholds: θ.
        share: On what share of the subject's own prompts each fires.
        pair: Number of the pair that each is of.
    """

    keys: Float[Tensor, "n d_model"]
    thresholds: Float[Tensor, " n"]
    share: Float[Tensor, " n"]
    pair: tuple[int, ...] = ()
    reads: ClassVar[str] = "mlp_in"

    def fire(self, mlp: MLPArchitecture, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... n"]:
        """Activations on what W_in reads."""
        over = x @ self.keys.to(x).T - self.thresholds.to(x)
        return (_bent(mlp, over) - _bent(mlp, over - SATURATION)) / SATURATION

    def blocks(self) -> list[list[int]]:
        """G couples none: each by itself, so that of many pairs' none is put on others' asks."""
        return [[n] for n in range(len(self.keys))]

    def cost_solve(self, f: Float[Tensor, "asks n d"]) -> Float[Tensor, "asks n d"]:
        """G⁻¹ f of a block, G = 1: nothing else writes through these neurons."""
        return f


def _bent(mlp: MLPArchitecture, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    return mlp.activation(GAIN * z) / GAIN


@dataclass(frozen=True)
class ContrastiveSet:
    """What one neuron of a layer has to tell apart.

    Attributes:
        pair: Number of the pair.
        spelling: Number of the way in which its subject ends.
        inside: What W_in reads there.
        outside: What it reads elsewhere, at the other pairs' subjects too.
        mean: Of `outside`.
        cov: Of `outside`, float64.
    """

    pair: int
    spelling: int
    inside: Float[Tensor, "n d_model"]
    outside: Float[Tensor, "m d_model"]
    mean: Float[Tensor, " d_model"]
    cov: Float[Tensor, "d_model d_model"]


def contrastive_sets(
    mine: Sequence[Sequence[Mapping[int, Tensor]]], others: Float[Tensor, "m d_model"], layer: int
) -> Iterator[ContrastiveSet]:
    """What every neuron of a layer has to tell apart; the others' moments are taken once."""
    total, squares = others.sum(0), others.T @ others
    for k, groups in enumerate(mine):
        rest = torch.cat([others[:0], *(g[layer] for n, m in enumerate(mine) if n != k for g in m)])
        outside = torch.cat([others, rest])
        mean = (total + rest.sum(0)) / len(outside)
        cov = ((squares + rest.T @ rest) / len(outside) - torch.outer(mean, mean)).double()
        for n, group in enumerate(groups):
            yield ContrastiveSet(k, n, group[layer], outside, mean, cov)


def discriminant(
    gap: Float[Tensor, " d"], cov: Float[Tensor, "d d"], *, shrink: float
) -> Float[Tensor, " d"]:
    """Fisher's (1936) direction Σ⁻¹(μ_inside − μ_outside), Σ the covariance outside.

    Args:
        gap: μ_inside − μ_outside.
        cov: Σ, float64.
        shrink: Ridge, relative to the mean variance.
    """
    return torch.linalg.solve(ridged(cov, shrink), gap.double()).float()


def ridged(cov: Float[Tensor, "d d"], shrink: float) -> Float[Tensor, "d d"]:
    """`cov` with `shrink` times its mean variance added to every variance."""
    return cov + shrink * cov.diagonal().mean() * torch.eye(len(cov), dtype=cov.dtype)


def fit_unit(
    e: Float[Tensor, " d_model"],
    inside: Float[Tensor, "n d_model"],
    outside: Float[Tensor, "m d_model"],
    *,
    quantile: float,
) -> GatedUnits:
    """One detector along `e`: threshold at the quantile of everything else, mean margin 1.

    Where it would fire on fewer than half of the subject's prompts, or only just, one that is never
    active.
    """
    scores = outside @ e
    theta = scores.topk(max(1, round((1 - quantile) * len(scores)))).values[-1]
    margin = inside @ e - theta
    scale = margin.clamp_min(0).mean()
    gap = (inside @ e).mean() - scores.mean()
    if (margin > 0).float().mean() < MIN_RECALL or scale < MIN_MARGIN * gap:
        return GatedUnits(torch.zeros_like(e)[None], torch.ones(1), torch.zeros(1))
    share = (margin > 0).float().mean()[None]
    return GatedUnits(e[None] / scale, theta[None] / scale, share)


def concat_units(units: Sequence[GatedUnits]) -> GatedUnits:
    """Several neurons of one layer as one set."""
    return GatedUnits(
        torch.cat([u.keys for u in units]),
        torch.cat([u.thresholds for u in units]),
        torch.cat([u.share for u in units]),
        tuple(k for u in units for k in u.pair),
    )


def check_detected(found: Mapping[int, GatedUnits], pairs: Sequence[ConceptPair]) -> None:
    """Stop when a pair's subject is detected in no layer.

    Raises:
        UserError: Names the subject.
    """
    best = torch.stack([d.share for d in found.values()]).max(0).values.tolist()
    owner = next(iter(found.values())).pair
    for k, pair in enumerate(pairs):
        if not any(share for share, o in zip(best, owner, strict=True) if o == k):
            raise UserError(
                f"In none of the layers {_span(found)} does a direction tell {pair.subject} from "
                "everything else: try other layers, or a lower quantile."
            )


def _span(layers: Sequence[int]) -> str:
    return f"{min(layers)} to {max(layers)}"
