"""Quality of an SAE on held-out text, against baselines.

The measures are reconstruction (fraction of variance unexplained, active latents, dead ones), the
model's loss when it computes with the reconstruction, and whether another seed finds the same
latents. The baselines are principal components and a random dictionary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import ENCODE_BATCH, SAE
from helpers.sae.splice import patched_ce_loss
from helpers.stats.intervals import Metric, linearized_ratio, mean_interval


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction of a set of vectors by an SAE.

    Attributes:
        fvu: Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², the interval over groups.
        l0: Active latents a vector, the interval over groups.
        feature_density: Fraction of the vectors on which each latent is active, (d_sae,).
        n: Number of vectors.
    """

    fvu: Metric
    l0: Metric
    feature_density: Float[np.ndarray, " d_sae"]
    n: int

    @property
    def dead(self) -> float:
        """Fraction of the latents that are active on none of the vectors."""
        return float((self.feature_density == 0).mean())


@torch.inference_mode()
def reconstruction(
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    *,
    target: Float[Tensor, "n d_out"] | None = None,
    groups: Int[np.ndarray, " n"] | None = None,
) -> Reconstruction:
    """Measure an SAE's reconstruction of held-out vectors.

    Args:
        sae: The SAE or transcoder.
        x: Inputs.
        target: Targets; `x` by default.
        groups: Index of the independent unit (a sequence of text) of each vector; intervals are
            over these. By default every vector is a unit.

    Raises:
        UserError: There are no vectors, or they are not as wide as the SAE.
    """
    _check_width(sae, x)
    target = x if target is None else target
    groups = np.arange(len(x)) if groups is None else np.asarray(groups)
    mean = target.float().mean(0)
    errors, deviations, n_active = [], [], []
    n_fired = torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
    for inputs, targets in zip(x.split(ENCODE_BATCH), target.split(ENCODE_BATCH), strict=True):
        z = sae.encode(inputs.float())
        on = z != 0
        errors.append((sae.decode(z) - targets.float()).pow(2).sum(1))
        deviations.append((targets.float() - mean).pow(2).sum(1))
        n_active.append(on.sum(1))
        n_fired += on.sum(0).double().cpu()
    sums = [_sum_by_group(torch.cat(v), groups) for v in (errors, deviations, n_active)]
    sizes = np.bincount(np.unique(groups, return_inverse=True)[1]).astype(float)
    return Reconstruction(
        fvu=ratio(sums[0], sums[1]),
        l0=ratio(sums[2], sizes),
        feature_density=(n_fired / len(x)).numpy(),
        n=len(x),
    )


def loss_recovered(
    model: LanguageModel,
    sae: SAE,
    tokens: Int[Tensor, "n t"],
    *,
    mean: Float[Tensor, " d_out"],
    first: int = 1,
) -> pd.DataFrame:
    """Compute the fraction of the loss that the reconstruction recovers from ablation.

    (L_ablated − L_spliced) / (L_ablated − L_original), the losses summed over sequences; 1 when the
    model predicts as well as before, 0 when as badly as without the site (Bricken et al. 2023). The
    site is ablated in two ways: set to zero, and set to its mean, which is harder to beat.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        tokens: Held-out text.
        mean: Mean activation at the replaced site.
        first: First position that is replaced; SAEs are not trained on the first token.

    Returns:
        One row a reference, `zero` and `mean`: reference, value, low, high, n (sequences), and the
        losses original, spliced and ablated in nats a token.
    """
    cfg = sae.cfg
    ablations = {
        "zero": lambda x: torch.zeros(len(x), cfg.d_out, device=x.device),
        "mean": lambda x: mean.to(x.device).float().expand(len(x), -1),
    }
    losses = patched_ce_loss(
        model,
        tokens,
        {"spliced": lambda x: sae(x.float().to(sae.W_dec.device)), **ablations},
        layer=cfg.layer,
        site=cfg.site,
        target=cfg.target,
        first=first,
    )
    rows = []
    for name in ablations:
        m = ratio(losses[name] - losses["spliced"], losses[name] - losses["original"])
        means = (losses[k].mean() for k in ("original", "spliced", name))
        rows.append((name, m.value, m.low, m.high, m.n, *means))
    columns = ["reference", "value", "low", "high", "n", "original", "spliced", "ablated"]
    return pd.DataFrame(rows, columns=columns)


@torch.inference_mode()
def max_cosine_similarity(a: SAE, b: SAE) -> Float[np.ndarray, " d_sae"]:
    """Compute, for each latent of `a`, the cosine of its decoder row with the nearest of `b`.

    Their mean is the mean maximum cosine similarity (MMCS) of Sharkey et al. 2022 ("Taking features
    out of superposition with sparse autoencoders"): near 1 when two seeds find the same latents.

    Raises:
        UserError: The two do not write into the same space.
    """
    if a.cfg.d_out != b.cfg.d_out:
        raise UserError(
            f"SAEs of width {a.cfg.d_out} and {b.cfg.d_out} have no latents in common: compare two "
            "of the same site."
        )
    rows_a, rows_b = (torch.nn.functional.normalize(s.W_dec.float(), dim=1) for s in (a, b))
    return (
        torch.cat([(rows @ rows_b.T).amax(1) for rows in rows_a.split(ENCODE_BATCH)]).cpu().numpy()
    )


@torch.inference_mode()
def pca_fvu(
    train: Float[Tensor, "m d"], x: Float[Tensor, "n d"], ranks: Sequence[int]
) -> Float[np.ndarray, " ranks"]:
    """Compute the fraction of variance of `x` unexplained by principal components of `train`.

    Every vector is written with the same components; an SAE selects latents for each.

    Args:
        train: Vectors of which the components are computed.
        x: Vectors that are reconstructed.
        ranks: Numbers of components.
    """
    mean = train.double().mean(0)
    centred = train.double() - mean
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)  # (d, d)
    deviations = x.double() - mean
    explained = (deviations @ directions).pow(2).sum(0).cumsum(0)
    total = (x.double() - x.double().mean(0)).pow(2).sum()
    error = deviations.pow(2).sum() - torch.cat([torch.zeros(1).double(), explained])
    return np.array([float(error[min(r, len(mean))] / total) for r in ranks])


@torch.inference_mode()
def random_dictionary_fvu(
    train: Float[Tensor, "m d"], x: Float[Tensor, "n d"], *, d_sae: int, k: int, seed: int = 0
) -> float:
    """Compute the fraction of variance of `x` unexplained by a dictionary of random directions.

    Each vector, less the mean of `train`, is written with the `k` directions that match it best,
    and with the best coefficients for these: no encoder could do better with that selection.

    Args:
        train: Vectors whose mean is subtracted.
        x: Vectors that are reconstructed.
        d_sae: Number of directions.
        k: Directions per vector.
        seed: Draws the directions.

    Raises:
        UserError: `k` is larger than the dictionary or the space.
    """
    if not 1 <= k <= min(d_sae, x.shape[1]):
        raise UserError(
            f"A dictionary of {d_sae} directions in {x.shape[1]} dimensions cannot write with {k}."
        )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_sae, x.shape[1], generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    mean, total, error = train.float().mean(0), 0.0, 0.0
    for part in x.float().split(ENCODE_BATCH):
        deviation = part - mean
        selected = rows[(deviation @ rows.T).abs().topk(k, dim=1).indices]  # (b, k, d)
        # Least squares by the normal equations; the small diagonal keeps them solvable.
        gram = selected @ selected.mT + 1e-6 * torch.eye(k)
        weights = torch.linalg.solve(gram, selected @ deviation[:, :, None])  # (b, k, 1)
        error += float((deviation - (selected * weights).sum(1)).pow(2).sum())
        total += float((part - x.float().mean(0)).pow(2).sum())
    return error / total


def ratio(top: Float[np.ndarray, " n"], bottom: Float[np.ndarray, " n"]) -> Metric:
    """Compute Σ top / Σ bottom with its 95 % interval over paired units, to first order."""
    return mean_interval(linearized_ratio(top, bottom))


def _sum_by_group(values: Tensor, groups: np.ndarray) -> Float[np.ndarray, " g"]:
    return np.bincount(np.unique(groups, return_inverse=True)[1], weights=values.cpu().numpy())


def _check_width(sae: SAE, x: Tensor) -> None:
    if not len(x):
        raise UserError("There are no vectors to reconstruct: harvest some text first.")
    if x.shape[1] != sae.cfg.d_in:
        raise UserError(
            f"The vectors are {x.shape[1]} wide and the SAE reads {sae.cfg.d_in}: take those of "
            f"its own site, {sae.cfg.site or 'as it was trained'}."
        )
