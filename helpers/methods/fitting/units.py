"""Gated units: pairs of neurons that detect a subject by a direction, a threshold and a saturation.

Two neurons with one key make a unit: above the saturation the second one cancels the growth of the
first. A unit then writes the same wherever it detects the subject clearly. One neuron alone would
write twice as much for a prompt that drives it twice as hard, and the linearized fit would not hold
there. Thresholded neurons for single facts are also the *patches* of T-Patcher (Huang et al. 2023)
and the slots of CaliNet (Dong et al. 2022), which are trained by gradient descent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.negatives import distinct_subjects
from helpers.models import MLPArchitecture


@dataclass(frozen=True)
class GatedUnits:
    """Gated units of one layer, with activations (A(e·x − θ) − A(e·x − θ − c)) / c from 0 to 1.

    A(z) = act(s z) / s, with s the gain and c the saturation.

    Attributes:
        keys: e, one row for each unit, scaled so that e·x − θ averages 1 on detected positives.
        thresholds: θ.
        recall: Share of the subject's prompts that each unit detects.
        subject: Number of each unit's subject.
        gain: s.
        saturation: c.
        input_site: Site whose activations the units read.
    """

    keys: Float[Tensor, "n d_model"]
    thresholds: Float[Tensor, " n"]
    recall: Float[Tensor, " n"]
    subject: tuple[int, ...] = ()
    gain: float = UnitEditHparams.gain
    saturation: float = UnitEditHparams.saturation
    input_site: ClassVar[str] = "mlp_in"

    def fire(self, mlp: MLPArchitecture, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... n"]:
        """Compute activations from the input of W_in."""
        margin = x @ self.keys.to(x).T - self.thresholds.to(x)
        lower = self._scaled_activation(mlp, margin)
        upper = self._scaled_activation(mlp, margin - self.saturation)
        return (lower - upper) / self.saturation

    def _scaled_activation(
        self, mlp: MLPArchitecture, z: Float[Tensor, "... n"]
    ) -> Float[Tensor, "... n"]:
        """Compute A(z) = act(s z) / s: the larger s is, the closer A comes to a ReLU."""
        return mlp.activation(self.gain * z) / self.gain

    def gram_blocks(self) -> list[list[int]]:
        """Return the blocks of the Gram matrix G = 1: every unit by itself.

        So units of one fact never enter the constraints of another.
        """
        return [[n] for n in range(len(self.keys))]

    def gram_solve(self, f: Float[Tensor, "some n d"]) -> Float[Tensor, "some n d"]:
        """Compute G⁻¹ f of a block, with G = 1: nothing else is written through new neurons."""
        return f


@dataclass(frozen=True)
class ContrastiveSet:
    """Positives and negatives of one unit at one layer, all as inputs of W_in.

    Attributes:
        subject: Number of the subject.
        token_variant: Number of the tokenization of the subject.
        positives: Inputs at the subject.
        negatives: Inputs elsewhere, at the other subjects too.
        mean: Mean of the negatives.
        cov: Covariance of the negatives, float64.
    """

    subject: int
    token_variant: int
    positives: Float[Tensor, "n d_model"]
    negatives: Float[Tensor, "m d_model"]
    mean: Float[Tensor, " d_model"]
    cov: Float[Tensor, "d_model d_model"]

    def mean_difference(self) -> Float[Tensor, " d_model"]:
        """Compute mean positives − mean negatives."""
        return self.positives.mean(0) - self.mean


def contrastive_sets(
    subject_inputs: Sequence[Sequence[Mapping[int, Tensor]]],
    negatives: Float[Tensor, "m d_model"],
    layer: int,
) -> Iterator[ContrastiveSet]:
    """Build the contrastive sets of one layer: one for each subject and tokenization of it.

    Args:
        subject_inputs: For each subject and tokenization, layer → inputs at the subject.
        negatives: Inputs of `layer` that belong to none of the pairs.
        layer: The layer.
    """
    # Moments of the common negatives are computed once; each subject adds those of the others.
    total, squares = negatives.sum(0), negatives.T @ negatives
    for k, variants in enumerate(subject_inputs):
        others = [x[layer] for n, xs in enumerate(subject_inputs) if n != k for x in xs]
        rest = torch.cat([negatives[:0], *others])
        all_negatives = torch.cat([negatives, rest])
        mean = (total + rest.sum(0)) / len(all_negatives)
        second_moment = (squares + rest.T @ rest) / len(all_negatives)
        cov = (second_moment - torch.outer(mean, mean)).double()
        for n, positives in enumerate(variants):
            yield ContrastiveSet(k, n, positives[layer], all_negatives, mean, cov)


def discriminant(
    mean_difference: Float[Tensor, " d"], cov: Float[Tensor, "d d"], *, shrinkage: float
) -> Float[Tensor, " d"]:
    """Compute Fisher's (1936) linear discriminant Σ⁻¹(μ₊ − μ₋), with Σ the negatives' covariance.

    Args:
        mean_difference: μ₊ − μ₋.
        cov: Σ, float64.
        shrinkage: Shrinkage of Σ, relative to its mean variance.
    """
    return torch.linalg.solve(shrink_covariance(cov, shrinkage), mean_difference.double()).float()


def shrink_covariance(cov: Float[Tensor, "d d"], shrinkage: float) -> Float[Tensor, "d d"]:
    """Add `shrinkage` times the mean variance to every variance, so that `cov` is invertible."""
    return cov + shrinkage * cov.diagonal().mean() * torch.eye(len(cov), dtype=cov.dtype)


def fit_unit(
    e: Float[Tensor, " d_model"], data: ContrastiveSet, hparams: UnitEditHparams
) -> GatedUnits:
    """Fit one unit along a direction: threshold at `max_fpr`, mean positive margin 1.

    The unit is never active (recall 0) if it would detect fewer than `min_recall` of the positives,
    or with a mean margin below `min_margin` of the distance between the means.

    Args:
        e: The direction.
        data: Positives and negatives.
        hparams: Hyperparameters of the unit.
    """
    scores = data.negatives @ e
    n_above = max(1, round(hparams.max_fpr * len(scores)))
    threshold = scores.topk(n_above).values[-1]
    margins = data.positives @ e - threshold
    scale = margins.clamp_min(0).mean()
    recall = (margins > 0).float().mean()
    distance = (data.positives @ e).mean() - scores.mean()
    if recall < hparams.min_recall or scale < hparams.min_margin * distance:
        one, zero = torch.ones(()), torch.zeros(())
        e, threshold, scale, recall = torch.zeros_like(e), one, one, zero
    return GatedUnits(
        e[None] / scale,
        threshold[None] / scale,
        recall[None],
        (data.subject,),
        hparams.gain,
        hparams.saturation,
    )


def concat_units(units: Sequence[GatedUnits]) -> GatedUnits:
    """Concatenate units of one layer, which have one gain and one saturation."""
    return GatedUnits(
        torch.cat([u.keys for u in units]),
        torch.cat([u.thresholds for u in units]),
        torch.cat([u.recall for u in units]),
        tuple(k for u in units for k in u.subject),
        units[0].gain,
        units[0].saturation,
    )


def check_detected(units: Mapping[int, GatedUnits], pairs: Sequence[ConceptPair]) -> None:
    """Check that each subject is detected in at least one layer.

    Args:
        units: Layer → its units.
        pairs: The pairs.

    Raises:
        UserError: Names a subject that no unit detects.
    """
    best_recall = torch.stack([u.recall for u in units.values()]).max(0).values.tolist()
    subject_index = next(iter(units.values())).subject
    for k, subject in enumerate(distinct_subjects(pairs)):
        if not any(r for r, n in zip(best_recall, subject_index, strict=True) if n == k):
            raise UserError(
                f"In none of the layers {min(units)} to {max(units)} does a direction tell "
                f"{subject} from everything else: try other layers, or a larger max_fpr."
            )
