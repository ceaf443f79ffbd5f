"""Where training starts: what decides how much is explained in the first minute."""

import os

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.sae.base import SAE


@torch.no_grad()
def start_from(sae: SAE, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
    """EXPERIMENT"""
    how = os.environ.get("START", "random")
    if "data" in how:
        g = torch.Generator().manual_seed(sae.cfg.seed)
        F = len(sae.W_dec)
        pick = torch.randperm(len(y), generator=g)
        pick = pick.repeat(F // len(pick) + 1)[:F]
        D = y[pick]
        mix = float(os.environ.get("MIX", "0"))
        D = D / D.norm(dim=1, keepdim=True).clamp_min(1e-8) + mix * sae.W_dec
        sae.W_dec.copy_(D / D.norm(dim=1, keepdim=True))
        if sae.cfg.d_in == sae.cfg.d_out:
            sae.encoder.copy_(sae.W_dec)
    if "cal" in how:
        q = x[:2048]
        out = sae(q) - sae.b_dec
        a = float((out * y[:2048]).sum() / out.square().sum())
        sae.encoder *= a * float(os.environ.get("CAL", "1"))
