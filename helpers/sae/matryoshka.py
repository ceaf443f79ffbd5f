"""Matryoshka BatchTopK (Bussmann et al. 2025, "Learning multi-level features")."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import SAEConfig
from helpers.sae.batch_topk import BatchTopKSAE
from helpers.sae.losses import AUXK_ROWS, Losses, auxk_loss
from helpers.sae.sparse import sparse_decode, sparse_encode


class MatryoshkaSAE(BatchTopKSAE):
    """A BatchTopK SAE of nested dictionaries, each of which must reconstruct alone.

    The loss is the sum, over the widths, of the squared error of the reconstruction by the first
    latents. So general concepts stay in the first ones instead of being absorbed by finer ones.
    """

    def __init__(self, cfg: SAEConfig):
        """Draw the weights.

        Args:
            cfg: Its configuration; without `matryoshka_widths` each part has as many latents as
                all parts before it.

        Raises:
            UserError: The widths do not grow up to the size of the dictionary.
        """
        if not cfg.matryoshka_widths:
            halved = tuple(max(1, cfg.d_sae >> i) for i in range(4, -1, -1))
            cfg = cfg.replace(matryoshka_widths=halved)
        super().__init__(cfg)
        widths = list(cfg.matryoshka_widths)
        if widths != sorted({*widths}) or widths[-1] != cfg.d_sae:
            raise UserError(
                f"Matryoshka's widths must grow and end at the dictionary's {cfg.d_sae} latents, "
                f"not {', '.join(map(str, widths))}."
            )

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        sparsity_warmup: float = 1.0,
    ) -> Losses:
        """Compute the squared error of every nested dictionary, and the AuxK loss of `dead`."""
        with torch.no_grad():
            active = self.select(x).split(self.cfg.matryoshka_widths)
        values = sparse_encode(x, self.encoder, self.b_enc, active).relu()
        decoded = sparse_decode(values, self.W_dec, self.b_dec, active)
        parts = decoded.view(len(x), len(self.cfg.matryoshka_widths), -1)  # (n, parts, d_out)
        # A nested dictionary holds all parts before its own: its reconstruction is a running sum.
        errors = y[:, None] - parts.cumsum(1)
        mse = errors.square().sum(2).mean(0)  # (parts,)
        return Losses(
            total=mse.sum() + auxk_loss(self, x, errors[:AUXK_ROWS, -1], dead),
            mse=mse[-1],
            firing_counts=active.firing_counts(values.detach()),
        )
