"""BatchTopK (Bussmann et al. 2024, "BatchTopK sparse autoencoders")."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.sae.base import SAEConfig
from helpers.sae.kernels import Code
from helpers.sae.selection import pick_batch_top
from helpers.sae.topk import TopK

AVERAGE = 0.99  # weight of the past in the running threshold
GUESS = 0.8  # of the last batch's threshold: lets through about twice what is kept


class BatchTopK(TopK):
    """The k · n largest pre-activations of a batch of n vectors stay.

    At inference a vector stands alone, so a threshold takes the batch's place: the running mean of
    the smallest activation that was kept.

    Attributes:
        threshold: () that mean.
    """

    def __init__(self, cfg: SAEConfig):
        """As `TopK`."""
        super().__init__(cfg)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def activate(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Zero all that do not exceed the threshold."""
        return pre.relu() * (pre > self.threshold)

    def select(self, x: Float[Tensor, "n d_in"]) -> Code:
        """The batch's largest; in training the running threshold follows."""
        guess = GUESS * float(self.last)
        code, smallest = pick_batch_top(x, self.encoder, self.b_enc, self.cfg.k, guess)
        if self.training:
            smallest = max(smallest, 0.0)
            past = AVERAGE if self.threshold > 0 else 0.0
            self.threshold.mul_(past).add_((1 - past) * smallest)
            self.last.fill_(smallest)
        return code

    def rescale(self, scale: float) -> None:
        """As `SAE.rescale`."""
        super().rescale(scale)
        self.threshold /= scale
        self.last /= scale

    def tensors(self) -> dict[str, Tensor]:
        """With the threshold for each latent, as SAELens's JumpReLU has it."""
        return super().tensors() | {"threshold": self.threshold.expand(self.cfg.d_sae)}

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        own = super().tensors()
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.threshold.fill_(float(tensors["threshold"][0]))
        self.last.copy_(self.threshold)
