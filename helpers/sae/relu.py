"""ReLU with an L1 loss (Bricken et al. 2023, Cunningham et al. 2023)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import UserError
from helpers.sae.base import SAE
from helpers.sae.losses import Losses
from helpers.sae.selection import select_above
from helpers.sae.sparse import (
    ActiveSet,
    DenseActiveSet,
    mean_squared_norm,
    sparse_decode,
    sparse_encode,
)


class ReLUSAE(SAE):
    """An SAE whose latents are the positive pre-activations, with a loss on their sum.

    The decoder's rows have norm 1, so that latents cannot shrink to make the loss small.
    """

    coefficient = "l1_coefficient"  # the field of the configuration that weighs the sparsity loss

    def check_trainable(self) -> None:
        """Refuse to train without a sparsity loss.

        Raises:
            UserError: Its coefficient is not positive.
        """
        if getattr(self.cfg, self.coefficient) <= 0:
            raise UserError(
                f"An SAE of kind '{self.cfg.architecture}' is trained with a sparsity loss: give "
                f"{self.coefficient} above 0."
            )

    def activate(self, hidden_pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Compute max(hidden_pre, 0)."""
        return hidden_pre.relu()

    def select(self, x: Float[Tensor, "n d_in"]) -> ActiveSet | DenseActiveSet:
        """Select all positive pre-activations."""
        return select_above(x, self.encoder, self.b_enc)

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        sparsity_warmup: float = 1.0,
    ) -> Losses:
        """Compute the mean of ‖y − ŷ‖² + λ Σ z; `dead` is not used, there is no AuxK loss."""
        with torch.no_grad():
            active = self.select(x)
        values = sparse_encode(x, self.encoder, self.b_enc, active).relu()
        error = sparse_decode(values, self.W_dec, self.b_dec, active, minus=y)
        mse = mean_squared_norm(error)
        return Losses(
            total=mse + sparsity_warmup * self.cfg.l1_coefficient * values.sum() / len(x),
            mse=mse,
            firing_counts=active.firing_counts(values.detach()),
        )
