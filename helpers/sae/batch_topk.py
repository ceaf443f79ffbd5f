"""BatchTopK (Bussmann et al. 2024, "BatchTopK sparse autoencoders")."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.sae.base import SAEConfig
from helpers.sae.selection import select_batch_topk
from helpers.sae.sparse import ActiveSet
from helpers.sae.topk import TopKSAE

THRESHOLD_DECAY = 0.99  # weight of the past in the running threshold
GUESS_FACTOR = 0.8  # times the last batch's threshold: lets through about twice k per vector


class BatchTopKSAE(TopKSAE):
    """An SAE whose latents are the k · n largest pre-activations of a batch of n vectors.

    At inference each vector is encoded alone, so a threshold takes the batch's place: the running
    mean of the smallest selected activation.

    Attributes:
        threshold: () the running mean.
        last: () the smallest selected activation of the last batch.
    """

    def __init__(self, cfg: SAEConfig):
        """Draw the weights; the threshold starts at 0.

        Args:
            cfg: Its configuration.
        """
        super().__init__(cfg)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def activate(self, hidden_pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Zero all that do not exceed the threshold."""
        return hidden_pre.relu() * (hidden_pre > self.threshold)

    def select(self, x: Float[Tensor, "n d_in"]) -> ActiveSet:
        """Select the batch's largest; in training, update the running threshold."""
        guess = GUESS_FACTOR * float(self.last)
        active, smallest = select_batch_topk(x, self.encoder, self.b_enc, self.cfg.k, guess)
        if self.training:
            smallest = max(smallest, 0.0)
            decay = THRESHOLD_DECAY if self.threshold > 0 else 0.0
            self.threshold.mul_(decay).add_((1 - decay) * smallest)
            self.last.fill_(smallest)
        return active

    def divide_biases(self, scale: float) -> None:
        """Divide the encoder's bias and the threshold by `scale`."""
        super().divide_biases(scale)
        self.threshold /= scale
        self.last /= scale

    def tensors(self) -> dict[str, Tensor]:
        """Collect the tensors of a file: the threshold once a latent, as SAELens's JumpReLU."""
        return super().tensors() | {"threshold": self.threshold.expand(self.cfg.d_sae)}

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of a file, as `tensors` names them, into parameters and threshold."""
        for name, tensor in super().tensors().items():
            tensor.copy_(tensors[name])
        self.threshold.fill_(float(tensors["threshold"][0]))
        self.last.copy_(self.threshold)
