"""Losses of a training step, and the auxiliary loss that revives dead latents."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

AUXK_ALPHA = 1 / 32  # Gao et al. 2024
AUXK_ROWS = 1024  # vectors of a batch that dead latents are trained on: they need direction only


@dataclass
class Losses:
    """Loss of one step.

    Attributes:
        total: The loss that is differentiated.
        mse: Mean squared norm of the error; in normalised units, the fraction of variance
            unexplained.
        firing_counts: (d_sae,) number of vectors on which each latent was active.
    """

    total: Tensor
    mse: Tensor
    firing_counts: Int[Tensor, " d_sae"]


def auxk_loss(
    sae, x: Float[Tensor, "n d_in"], error: Float[Tensor, "m d_out"], dead: Int[Tensor, " d"] | None
) -> Tensor | float:
    """Compute AuxK, α ‖e − ê‖² / ‖e‖²: dead latents are trained to explain the error.

    ê decodes the d_out / 2 largest of the dead latents (Gao et al. 2024, appendix A.2, α = 1/32,
    with the normalisation of their code). e is a constant here: live latents get no gradient.

    Args:
        sae: The SAE in training.
        x: Its input.
        error: y − ŷ on the first m vectors; the trainer gives `AUXK_ROWS` of them.
        dead: Indices of latents that have not been active for long; without any the loss is 0.
    """
    if dead is None or not len(dead):
        return 0.0
    x, target = x[: len(error)], error.detach()
    hidden_pre = torch.addmm(sae.b_enc[dead], x, sae.encoder[dead].T)
    if len(dead) > (k := max(1, sae.cfg.d_out // 2)):
        top = hidden_pre.topk(k, dim=1, sorted=False)
        hidden_pre = torch.zeros_like(hidden_pre).scatter(1, top.indices, top.values)
    decoded = hidden_pre.relu() @ sae.W_dec[dead]
    # Relative to the error, so that the loss keeps its weight as the reconstruction gets better.
    relative = (target - decoded).square().sum() / target.square().sum().clamp_min(1e-12)
    return AUXK_ALPHA * relative
