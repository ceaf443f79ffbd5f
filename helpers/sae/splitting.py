"""Feature splitting and absorption: does one concept have one latent, or several?"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.sae.base import SAE
from helpers.sae.probing import f1_score


def feature_splitting(
    z: Float[Tensor, "n d_sae"],
    labels: Float[Tensor, " n"],
    ranked: Sequence[int],
    thresholds: Sequence[float],
) -> pd.DataFrame:
    """Compute how well the first k latents together detect a concept.

    A token is predicted positive when any of the first k latents is at its threshold. Where one
    concept is split over several latents, F1 rises with k.

    Args:
        z: Latents at labelled tokens.
        labels: 1 where a token is of the concept, else 0.
        ranked: Latents, the best detector first.
        thresholds: Threshold of each.

    Returns:
        One row for k = 1, 2, ...: k, f1, recall.
    """
    above = z[:, list(ranked)] >= torch.as_tensor(thresholds, dtype=z.dtype)
    rows = []
    for k in range(1, len(ranked) + 1):
        predicted = above[:, :k].any(1).float()
        recall = float((predicted * labels).sum() / labels.sum())
        rows.append((k, float(f1_score(predicted, labels)), recall))
    return pd.DataFrame(rows, columns=["k", "f1", "recall"])


def feature_absorption(
    z: Float[Tensor, "n d_sae"],
    sae: SAE,
    labels: Float[Tensor, " n"],
    main: int,
    threshold: float,
    direction: Float[Tensor, " d_in"],
    *,
    min_share: float = 0.5,
) -> dict[str, float]:
    """Compute how often the main latent misses its concept while another latent carries it.

    After Chanin et al. 2024 ("A is for Absorption"), simplified. A token that the main latent
    misses is absorbed when one other latent alone makes up at least `min_share` of a typical
    token's projection on the concept's direction.

    Args:
        z: Latents at labelled tokens.
        sae: The SAE.
        labels: 1 where a token is of the concept, else 0.
        main: The concept's best latent.
        threshold: Its threshold.
        direction: The concept's direction at the SAE's output, such as a difference of means.
        min_share: Least share of the projection that counts as carrying the concept.

    Returns:
        missed and absorbed, both as fractions of the concept's tokens.
    """
    members = z[labels.bool()]
    unit = torch.nn.functional.normalize(direction, dim=0)
    projections = members * (sae.W_dec.detach() @ unit)  # of each latent, (members, d_sae)
    typical = projections.sum(1).median()
    others = projections.clone()
    others[:, main] = 0
    missed = members[:, main] < threshold
    carried = others.amax(1) >= min_share * typical.clamp_min(1e-6)
    return {
        "missed": float(missed.float().mean()),
        "absorbed": float((missed & carried).float().mean()),
    }
