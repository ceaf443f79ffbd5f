"""What a training step reports, and the loss that revives dead latents."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

DEAD_WEIGHT = 1 / 32  # Gao et al. 2024
DEAD_ROWS = 1024  # vectors of a batch that dead latents are trained on: they need direction only


@dataclass
class Losses:
    """One step's loss.

    Attributes:
        total: What is differentiated.
        mse: Mean squared length of the error; in normalised units, the fraction of variance
            that is not explained.
        fired: (d_sae,) on how many vectors each latent was active.
    """

    total: Tensor
    mse: Tensor
    fired: Int[Tensor, " d_sae"]


def auxk_loss(
    sae, x: Float[Tensor, "n d_in"], error: Float[Tensor, "m d_out"], dead: Int[Tensor, " d"] | None
) -> Tensor | float:
    """α ‖e − ê‖² / ‖e‖²: the dead latents alone should explain what the live ones leave over.

    ê decodes the d_out / 2 largest of the dead latents (Gao et al. 2024, appendix A.2, α = 1/32,
    with the normalisation of their code). e is a constant here: live latents get no gradient.

    Args:
        sae: The SAE in training.
        x: What it reads.
        error: y − ŷ on the first m vectors; the trainer gives `DEAD_ROWS` of them.
        dead: Latents that have not been active for long; without any the loss is 0.
    """
    if dead is None or not len(dead):
        return 0.0
    x, target = x[: len(error)], error.detach()
    pre = torch.addmm(sae.b_enc[dead], x, sae.encoder[dead].T)
    if len(dead) > (k := max(1, sae.cfg.d_out // 2)):
        top = pre.topk(k, dim=1, sorted=False)
        pre = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    written = pre.relu() @ sae.W_dec[dead]
    return DEAD_WEIGHT * (target - written).square().sum() / target.square().sum().clamp_min(1e-12)
