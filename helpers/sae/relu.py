"""ReLU with an L1 loss (Bricken et al. 2023, Cunningham et al. 2023)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import SAE
from helpers.sae.kernels import Code, DenseCode, mean_square, read, write
from helpers.sae.losses import Losses
from helpers.sae.selection import pick_above


class ReLU(SAE):
    """Every positive pre-activation stays; their sum is paid for.

    The decoder's rows have norm 1, so that latents cannot shrink to make it cheap.
    """

    def check_trainable(self) -> None:
        """As `SAE.check_trainable`."""
        if self.cfg.sparsity <= 0:
            raise UserError(
                f"An SAE of kind '{self.cfg.architecture}' is trained with a sparsity loss: give "
                "sparsity above 0."
            )

    def activate(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """max(pre, 0)."""
        return pre.relu()

    def select(self, x: Float[Tensor, "n d_in"]) -> Code | DenseCode:
        """All positive ones."""
        return pick_above(x, self.encoder, self.b_enc)

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        progress: float = 1.0,
    ) -> Losses:
        """Mean of ‖y − ŷ‖² + λ Σ z; dead latents have no loss of their own here."""
        with torch.no_grad():
            code = self.select(x)
        values = read(x, self.encoder, self.b_enc, code).relu()
        error = write(values, self.W_dec, self.b_dec, code, minus=y)
        mse = mean_square(error)
        return Losses(
            total=mse + progress * self.cfg.sparsity * values.sum() / len(x),
            mse=mse,
            fired=code.fired(values.detach()),
        )
