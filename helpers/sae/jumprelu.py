"""JumpReLU (Rajamanoharan et al. 2024, "Jumping ahead")."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.sae.base import SAEConfig
from helpers.sae.losses import Losses
from helpers.sae.relu import ReLUSAE
from helpers.sae.selection import select_above
from helpers.sae.sparse import (
    ActiveSet,
    DenseActiveSet,
    mean_squared_norm,
    sparse_decode,
    sparse_encode,
)

MIN_THRESHOLD = 0.001  # least first threshold, for vectors of mean squared norm 1: the paper's
BANDWIDTH = 0.03  # the paper's is 0.001, for trainings of a thousand times as many steps


class JumpReLUSAE(ReLUSAE):
    """An SAE whose latents are the pre-activations above a learned threshold of each latent.

    The loss is on the number of active latents. Neither it nor the jump has a useful gradient to
    the threshold, so both take one from the pre-activations within half a bandwidth of it (a
    straight-through estimator with a rectangular kernel).

    Attributes:
        log_threshold: (d_sae,) log θ, so that thresholds stay positive.
    """

    coefficient = "l0_coefficient"

    def __init__(self, cfg: SAEConfig):
        """Draw the weights; thresholds start at `MIN_THRESHOLD`.

        Args:
            cfg: Its configuration; a `jumprelu_bandwidth` of 0 means `BANDWIDTH`.
        """
        super().__init__(
            cfg if cfg.jumprelu_bandwidth else cfg.replace(jumprelu_bandwidth=BANDWIDTH)
        )
        self.log_threshold = nn.Parameter(torch.full((cfg.d_sae,), math.log(MIN_THRESHOLD)))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """The thresholds θ."""
        return self.log_threshold.exp()

    def activate(self, hidden_pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Zero all that do not exceed their threshold."""
        return hidden_pre * (hidden_pre > self.threshold)

    def select(self, x: Float[Tensor, "n d_in"]) -> ActiveSet | DenseActiveSet:
        """Select all that are active or, below the threshold, within the estimator's kernel."""
        lower = self.threshold - self.cfg.jumprelu_bandwidth / 2
        return select_above(x, self.encoder, self.b_enc, lower)

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        sparsity_warmup: float = 1.0,
    ) -> Losses:
        """Compute the mean of ‖y − ŷ‖² + λ ‖z‖₀; `dead` is not used, there is no AuxK loss."""
        with torch.no_grad():
            active = self.select(x)
        hidden_pre = sparse_encode(x, self.encoder, self.b_enc, active)
        threshold = active.per_pair(self.threshold)
        if active.dense:
            threshold = threshold.expand_as(hidden_pre)
        values, on = jump(hidden_pre, threshold, self.cfg.jumprelu_bandwidth)
        if active.dense:
            values, on = values * active.mask, on * active.mask
        error = sparse_decode(values, self.W_dec, self.b_dec, active, minus=y)
        mse = mean_squared_norm(error)
        return Losses(
            total=mse + sparsity_warmup * self.cfg.l0_coefficient * on.sum() / len(x),
            mse=mse,
            firing_counts=active.firing_counts(values.detach()),
        )

    @torch.no_grad()
    def init_threshold(self, value: float) -> None:
        """Let latents start active where x W_enc exceeds `value`, by their thresholds.

        Adam moves a logarithm by its learning rate each step, so from the paper's 0.001 they would
        not arrive within the few thousand steps of a training here.
        """
        self.log_threshold.fill_(math.log(max(value, MIN_THRESHOLD)))

    @torch.no_grad()
    def divide_biases(self, scale: float) -> None:
        """Divide the encoder's bias and the thresholds by `scale`."""
        super().divide_biases(scale)
        self.log_threshold -= math.log(scale)

    def tensors(self) -> dict[str, Tensor]:
        """Collect the tensors of a file, with θ instead of its logarithm."""
        return super().tensors() | {"threshold": self.threshold.data}

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of a file, as `tensors` names them, into the parameters."""
        super().set_tensors(tensors)
        self.log_threshold.copy_(tensors["threshold"].clamp_min(1e-30).log())


def jump(hidden_pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Compute pre · [pre > θ] and [pre > θ], with straight-through gradients to θ.

    With K the indicator of |pre − θ| < ε/2, the gradients to θ are −θ/ε · K and −1/ε · K.

    Args:
        hidden_pre: Pre-activations.
        threshold: θ of each, of the same shape.
        bandwidth: ε.
    """
    return _Jump.apply(hidden_pre, threshold, bandwidth)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_pre, threshold, bandwidth):
        on = (hidden_pre > threshold).to(hidden_pre.dtype)
        ctx.save_for_backward(hidden_pre, threshold, on)
        ctx.bandwidth = bandwidth
        return hidden_pre * on, on.clone()

    @staticmethod
    def backward(ctx, d_value, d_on):
        hidden_pre, threshold, on = ctx.saved_tensors
        kernel = ((hidden_pre - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return d_value * on, -kernel * (threshold * d_value + d_on), None
