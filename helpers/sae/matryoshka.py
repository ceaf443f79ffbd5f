"""Matryoshka BatchTopK (Bussmann et al. 2025, "Learning multi-level features")."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import SAEConfig
from helpers.sae.batch_topk import BatchTopK
from helpers.sae.kernels import read, write
from helpers.sae.losses import DEAD_ROWS, Losses, auxk_loss


class Matryoshka(BatchTopK):
    """Nested dictionaries: the first latents alone must reconstruct, then more of them, then all.

    The loss is the sum over the widths of the squared error of the reconstruction by the first
    latents; general concepts are kept in the first ones instead of being absorbed by finer ones.
    """

    def __init__(self, cfg: SAEConfig):
        """As `BatchTopK`; without `cfg.widths` each part has as many latents as all before it.

        Raises:
            UserError: The widths do not grow up to the size of the dictionary.
        """
        if not cfg.widths:
            cfg = cfg.but(widths=[max(1, cfg.d_sae >> i) for i in range(4, -1, -1)])
        super().__init__(cfg)
        if list(cfg.widths) != sorted({*cfg.widths}) or cfg.widths[-1] != cfg.d_sae:
            raise UserError(
                f"Matryoshka's widths must grow and end at the dictionary's {cfg.d_sae} latents, "
                f"not {', '.join(map(str, cfg.widths))}."
            )

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        progress: float = 1.0,
    ) -> Losses:
        """As `SAE.loss`, with the error of every nested dictionary."""
        with torch.no_grad():
            code = self.select(x).split(self.cfg.widths)
        values = read(x, self.encoder, self.b_enc, code).relu()
        written = write(values, self.W_dec, self.b_dec, code)
        parts = written.view(len(x), len(self.cfg.widths), -1)  # (n, parts, d_out)
        errors = y[:, None] - parts.cumsum(1)
        mse = errors.square().sum(2).mean(0)  # (parts,)
        return Losses(
            total=mse.sum() + auxk_loss(self, x, errors[:DEAD_ROWS, -1], dead),
            mse=mse[-1],
            fired=code.fired(values.detach()),
        )
