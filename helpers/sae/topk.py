"""TopK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.kernels import Code
from helpers.sae.selection import pick_top


class TopK(SAE):
    """The k largest pre-activations stay, where they are positive; no sparsity loss is needed."""

    def __init__(self, cfg: SAEConfig):
        """As `SAE`.

        Raises:
            UserError: `k` is not given.
        """
        super().__init__(cfg)
        if cfg.k < 1:
            raise UserError(f"An SAE of kind '{cfg.architecture}' needs k, say k=32.")

    def activate(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Zero all but the k largest."""
        top = pre.topk(self.cfg.k, dim=1)
        return torch.zeros_like(pre).scatter_(1, top.indices, top.values.relu())

    def select(self, x: Float[Tensor, "n d_in"]) -> Code:
        """Each vector's k largest."""
        return pick_top(x, self.encoder, self.b_enc, self.cfg.k)
