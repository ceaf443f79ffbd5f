"""TopK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import SAE, SAEConfig
from helpers.sae.selection import select_topk
from helpers.sae.sparse import ActiveSet


class TopKSAE(SAE):
    """An SAE whose latents are each vector's k largest pre-activations, where positive.

    It needs no sparsity loss.
    """

    def __init__(self, cfg: SAEConfig):
        """Draw the weights.

        Args:
            cfg: Its configuration.

        Raises:
            UserError: `k` is not given.
        """
        super().__init__(cfg)
        if cfg.k < 1:
            raise UserError(f"An SAE of kind '{cfg.architecture}' needs k, say k=32.")

    def activate(self, hidden_pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Zero all but the k largest."""
        top = hidden_pre.topk(self.cfg.k, dim=1)
        return torch.zeros_like(hidden_pre).scatter_(1, top.indices, top.values.relu())

    def select(self, x: Float[Tensor, "n d_in"]) -> ActiveSet:
        """Select each vector's k largest pre-activations."""
        return select_topk(x, self.encoder, self.b_enc, self.cfg.k)
