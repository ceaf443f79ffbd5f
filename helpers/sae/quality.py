"""How good an SAE is on text that it never saw, and against what.

Reconstruction (fraction of variance unexplained, active latents, dead ones), what the model loses
when it has to work with the reconstruction, whether another seed finds the same latents; and two
rivals that know nothing of sparse coding, the principal components and a random dictionary.
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
from helpers.stats.intervals import REPETITIONS, Metric


@dataclass(frozen=True)
class Reconstruction:
    """What an SAE does to a set of vectors.

    Attributes:
        fvu: Fraction of variance unexplained, Σ‖y − ŷ‖² / Σ‖y − ȳ‖², the interval over groups.
        l0: Active latents a vector, the interval over groups.
        firing: Share of the vectors on which each latent is active, (d_sae,).
        n: Vectors.
    """

    fvu: Metric
    l0: Metric
    firing: Float[np.ndarray, " d_sae"]
    n: int

    @property
    def dead(self) -> float:
        """Share of the latents that are active on none of the vectors."""
        return float((self.firing == 0).mean())


@torch.inference_mode()
def reconstruction(
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    *,
    target: Float[Tensor, "n d_out"] | None = None,
    groups: Int[np.ndarray, " n"] | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Measure an SAE's reconstruction of held-out vectors.

    Args:
        sae: The SAE or transcoder.
        x: What it reads.
        target: What it should write; `x` by default.
        groups: Which independent unit (a sequence of text) each vector belongs to; intervals are
            over these. Each vector by itself without them.
        seed: Draws the resamples.

    Raises:
        UserError: There are no vectors, or they are not as wide as the SAE.
    """
    _check_width(sae, x)
    target = x if target is None else target
    groups = np.arange(len(x)) if groups is None else np.asarray(groups)
    mean = target.float().mean(0)
    error, spread, active = [], [], []
    firing = torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
    for rows, wanted in zip(x.split(ENCODE_BATCH), target.split(ENCODE_BATCH), strict=True):
        z = sae.encode(rows.float())
        on = z != 0
        error.append((sae.decode(z) - wanted.float()).pow(2).sum(1))
        spread.append((wanted.float() - mean).pow(2).sum(1))
        active.append(on.sum(1))
        firing += on.sum(0).double().cpu()
    sums = [_by_group(torch.cat(v), groups) for v in (error, spread, active)]
    sizes = np.bincount(np.unique(groups, return_inverse=True)[1]).astype(float)
    return Reconstruction(
        fvu=ratio(sums[0], sums[1], seed=seed),
        l0=ratio(sums[2], sizes, seed=seed),
        firing=(firing / len(x)).numpy(),
        n=len(x),
    )


def loss_recovered(
    model: LanguageModel,
    sae: SAE,
    tokens: Int[Tensor, "n t"],
    *,
    mean: Float[Tensor, " d_out"],
    first: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of what the site is worth to the model its reconstruction keeps.

    (L_ablated − L_spliced) / (L_ablated − L_original), the losses summed over sequences; 1 when the
    model predicts as well as before, 0 when as badly as without the site (Bricken et al. 2023). The
    site is taken away in two ways: set to zero, and set to its mean, which is harder to beat.

    Args:
        model: Any model of a known family.
        sae: An SAE of one of its sites.
        tokens: Held-out text.
        mean: Mean activation of what is replaced.
        first: As in `helpers.sae.splice.patched_ce_loss`.
        seed: Draws the resamples.

    Returns:
        One row a reference, `zero` and `mean`: reference, value, low, high, n (sequences), and the
        losses original, spliced and ablated in nats a token.
    """
    cfg = sae.cfg
    flat = {
        "zero": lambda x: torch.zeros(len(x), cfg.d_out, device=x.device),
        "mean": lambda x: mean.to(x.device).float().expand(len(x), -1),
    }
    losses = patched_ce_loss(
        model,
        tokens,
        {"spliced": lambda x: sae(x.float().to(sae.W_dec.device)), **flat},
        layer=cfg.layer,
        site=cfg.site,
        target=cfg.target,
        first=first,
    )
    rows = []
    for name in flat:
        m = ratio(losses[name] - losses["spliced"], losses[name] - losses["original"], seed=seed)
        means = (losses[k].mean() for k in ("original", "spliced", name))
        rows.append((name, m.value, m.low, m.high, m.n, *means))
    columns = ["reference", "value", "low", "high", "n", "original", "spliced", "ablated"]
    return pd.DataFrame(rows, columns=columns)


@torch.inference_mode()
def best_matches(a: SAE, b: SAE) -> Float[np.ndarray, " d_sae"]:
    """For each latent of `a` the cosine of its decoder row with the nearest one of `b`.

    The mean is the mean maximum cosine similarity of Sharkey et al. 2022 ("Taking features out of
    superposition with sparse autoencoders"): near 1 when two seeds find the same latents.

    Raises:
        UserError: The two do not write into the same space.
    """
    if a.cfg.d_out != b.cfg.d_out:
        raise UserError(
            f"SAEs of width {a.cfg.d_out} and {b.cfg.d_out} have no latents in common: compare two "
            "of the same site."
        )
    mine, theirs = (torch.nn.functional.normalize(s.W_dec.float(), dim=1) for s in (a, b))
    return torch.cat([(rows @ theirs.T).amax(1) for rows in mine.split(ENCODE_BATCH)]).cpu().numpy()


@torch.inference_mode()
def pca_fvu(
    train: Float[Tensor, "m d"], x: Float[Tensor, "n d"], ranks: Sequence[int]
) -> Float[np.ndarray, " ranks"]:
    """Variance of `x` that the first principal components of `train` leave unexplained.

    A vector is written with as many numbers as there are components, the same ones for every
    vector; an SAE chooses its own for each.
    """
    mean = train.double().mean(0)
    centred = train.double() - mean
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)  # (d, d)
    rest = x.double() - mean
    explained = (rest @ directions).pow(2).sum(0).cumsum(0)
    total = (x.double() - x.double().mean(0)).pow(2).sum()
    error = rest.pow(2).sum() - torch.cat([torch.zeros(1).double(), explained])
    return np.array([float(error[min(r, len(mean))] / total) for r in ranks])


@torch.inference_mode()
def random_dictionary_fvu(
    train: Float[Tensor, "m d"], x: Float[Tensor, "n d"], *, d_sae: int, k: int, seed: int = 0
) -> float:
    """Variance of `x` that a dictionary of random directions leaves unexplained.

    Each vector, less the mean of `train`, is written with the `k` directions that match it best,
    and with the best coefficients for these: no encoder could do better with the choice.

    Raises:
        UserError: `k` is larger than the dictionary or the space.
    """
    if not 1 <= k <= min(d_sae, x.shape[1]):
        raise UserError(
            f"A dictionary of {d_sae} directions in {x.shape[1]} dimensions cannot write with {k}."
        )
    draw = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, x.shape[1], generator=draw), dim=1)
    mean, total, error = train.float().mean(0), 0.0, 0.0
    for part in x.float().split(ENCODE_BATCH):
        rest = part - mean
        chosen = rows[(rest @ rows.T).abs().topk(k, dim=1).indices]  # (b, k, d)
        gram = chosen @ chosen.mT + 1e-6 * torch.eye(k)
        weights = torch.linalg.solve(gram, chosen @ rest[:, :, None])  # (b, k, 1)
        error += float((rest - (chosen * weights).sum(1)).pow(2).sum())
        total += float((part - x.float().mean(0)).pow(2).sum())
    return error / total


def ratio(
    top: Float[np.ndarray, " n"], bottom: Float[np.ndarray, " n"], *, seed: int = 0
) -> Metric:
    """Σ top / Σ bottom with its 95 % percentile bootstrap interval over the units, paired."""
    top, bottom = np.asarray(top, float), np.asarray(bottom, float)
    value = float(top.sum() / bottom.sum())
    if len(top) == 1:
        return Metric(value, float("nan"), float("nan"), 1)
    drawn = np.random.default_rng(seed).integers(len(top), size=(REPETITIONS, len(top)))
    low, high = np.percentile(top[drawn].sum(1) / bottom[drawn].sum(1), [2.5, 97.5])
    return Metric(value, float(low), float(high), len(top))


def _by_group(values: Tensor, groups: np.ndarray) -> Float[np.ndarray, " g"]:
    return np.bincount(np.unique(groups, return_inverse=True)[1], weights=values.cpu().numpy())


def _check_width(sae: SAE, x: Tensor) -> None:
    if not len(x):
        raise UserError("There are no vectors to reconstruct: harvest some text first.")
    if x.shape[1] != sae.cfg.d_in:
        raise UserError(
            f"The vectors are {x.shape[1]} wide and the SAE reads {sae.cfg.d_in}: take those of "
            f"its own site, {sae.cfg.site or 'as it was trained'}."
        )
