"""Initialisation from data, which decides how much is explained in the first minute.

Latent i starts as a vector of the data: its encoder row is x_i's direction, its decoder row y_i's.
On SmolLM2's MLP outputs that explains after 10 steps what random directions explain after 30. The
encoder is then scaled so that the reconstruction has the right length: many similar latents are
active at once, and unscaled they would write the same thing many times.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.sae.base import SAE
from helpers.sae.sparse import sparse_decode

FIT_ROWS = 2048  # vectors that the scale is fitted on
INITIAL_L0 = 64  # latents of a vector active at first where no k fixes it, or an eighth of them


@torch.no_grad()
def init_from_data(sae: SAE, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
    """Set an SAE's weights from a sample of its inputs and targets.

    Where the sample has fewer vectors than the dictionary latents, the rest keep their random
    directions.

    Args:
        sae: A fresh one; its configuration's seed draws the vectors.
        x: Inputs, normalised.
        y: Targets, normalised; `x` itself for an SAE.
    """
    generator = torch.Generator().manual_seed(sae.cfg.seed)
    rows = torch.randperm(len(x), generator=generator)[: sae.cfg.d_sae]
    sae.encoder[: len(rows)] = _unit(x[rows])
    sae.W_dec[: len(rows)] = _unit(y[rows])
    x, y = x[:FIT_ROWS], y[:FIT_ROWS]
    if not sae.cfg.k:
        # A threshold that lets through `INITIAL_L0` latents of a vector, on average.
        products = (x @ sae.encoder.T).flatten()
        n_active = max(1, int(min(INITIAL_L0 / sae.cfg.d_sae, 1 / 8) * len(products)))
        sae.init_threshold(max(0.0, float(products.topk(n_active, sorted=False).values.min())))
    was_training = sae.training
    active = sae.eval().select(x)
    sae.train(was_training)
    values = active.hidden_pre.relu() if not active.dense else sae.encode(x)
    no_bias = torch.zeros_like(sae.b_dec)
    decoded = sparse_decode(values, sae.W_dec, no_bias, active).view(len(x), -1, y.shape[1]).sum(1)
    # Least squares: the factor of the reconstruction that is closest to the targets.
    scale = float((decoded * y).sum() / decoded.square().sum().clamp_min(1e-12))
    if scale > 0:
        sae.encoder *= scale
        sae.divide_biases(1 / scale)


def _unit(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-8)
