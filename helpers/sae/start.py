"""Where training starts: it decides how much is explained in the first minute.

Latent i starts as a vector of the data: it reads the direction x_i and writes y_i's. On SmolLM2's
MLP outputs that explains after 10 steps what random directions explain after 30. The encoder is
then scaled so that what the active latents write together is as long as it should be: many similar
latents are active at once, and unscaled they would write the same thing many times.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.sae.base import SAE
from helpers.sae.kernels import write

ROWS = 2048  # vectors that the scale is fitted on
ACTIVE = 64  # latents of a vector active at first where no k fixes it, or an eighth of them


@torch.no_grad()
def init_from_data(sae: SAE, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
    """Set an SAE's weights from a sample of what it will read and write.

    Where the sample has fewer vectors than the dictionary latents, the rest keep their random
    directions.

    Args:
        sae: A fresh one; its config's seed draws the vectors.
        x: What it reads, normalised.
        y: What it is to write, normalised; `x` itself for an SAE.
    """
    draw = torch.Generator().manual_seed(sae.cfg.seed)
    rows = torch.randperm(len(x), generator=draw)[: sae.cfg.d_sae]
    sae.encoder[: len(rows)] = _unit(x[rows])
    sae.W_dec[: len(rows)] = _unit(y[rows])
    x, y = x[:ROWS], y[:ROWS]
    if not sae.cfg.k:
        pre = (x @ sae.encoder.T).flatten()
        count = max(1, int(min(ACTIVE / sae.cfg.d_sae, 1 / 8) * len(pre)))
        sae.init_threshold(max(0.0, float(pre.topk(count, sorted=False).values.min())))
    was_training = sae.training
    code = sae.eval().select(x)
    sae.train(was_training)
    values = code.pre.relu() if not code.dense else sae.encode(x)
    out = write(values, sae.W_dec, torch.zeros_like(sae.b_dec), code).view(len(x), -1, y.shape[1])
    out = out.sum(1)
    scale = float((out * y).sum() / out.square().sum().clamp_min(1e-12))
    if scale > 0:
        sae.encoder *= scale
        sae.rescale(1 / scale)


def _unit(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-8)
