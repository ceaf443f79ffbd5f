"""JumpReLU (Rajamanoharan et al. 2024, "Jumping ahead")."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.sae.base import SAEConfig
from helpers.sae.kernels import Code, DenseCode, mean_square, read, write
from helpers.sae.losses import Losses
from helpers.sae.relu import ReLU
from helpers.sae.selection import pick_above

START = 0.001  # least first threshold, for vectors of mean squared length 1: the paper's
BANDWIDTH = 0.03  # the paper's is 0.001, for trainings of a thousand times as many steps


class JumpReLU(ReLU):
    """A pre-activation stays where it exceeds the latent's own, learned threshold.

    The number of active latents is paid for directly. Neither it nor the jump has a useful
    gradient to the threshold, so both take one from the pre-activations within half a bandwidth of
    it (a straight-through estimator with a rectangular kernel).

    Attributes:
        log_threshold: (d_sae,) so that thresholds stay positive.
    """

    def __init__(self, cfg: SAEConfig):
        """As `ReLU`; `cfg.bandwidth` 0 means `BANDWIDTH`."""
        super().__init__(cfg if cfg.bandwidth else cfg.but(bandwidth=BANDWIDTH))
        self.log_threshold = nn.Parameter(torch.full((cfg.d_sae,), math.log(START)))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """θ."""
        return self.log_threshold.exp()

    def activate(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Zero all that do not exceed their threshold."""
        return pre * (pre > self.threshold)

    def select(self, x: Float[Tensor, "n d_in"]) -> Code | DenseCode:
        """All that are active or within the estimator's reach below the threshold."""
        reach = self.threshold - self.cfg.bandwidth / 2
        return pick_above(x, self.encoder, self.b_enc, reach)

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        progress: float = 1.0,
    ) -> Losses:
        """Mean of ‖y − ŷ‖² + λ ‖z‖₀."""
        with torch.no_grad():
            code = self.select(x)
        pre = read(x, self.encoder, self.b_enc, code)
        threshold = code.per_pair(self.threshold)
        if code.dense:
            threshold = threshold.expand_as(pre)
        values, count = jump(pre, threshold, self.cfg.bandwidth)
        if code.dense:
            values, count = values * code.active, count * code.active
        error = write(values, self.W_dec, self.b_dec, code, minus=y)
        mse = mean_square(error)
        return Losses(
            total=mse + progress * self.cfg.sparsity * count.sum() / len(x),
            mse=mse,
            fired=code.fired(values.detach()),
        )

    @torch.no_grad()
    def init_threshold(self, value: float) -> None:
        """As `SAE.init_threshold`, but by the thresholds themselves.

        Adam moves a logarithm by its learning rate each step, so from the paper's 0.001 they would
        not arrive within the few thousand steps of a training here.
        """
        self.log_threshold.fill_(math.log(max(value, START)))

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """As `SAE.rescale`."""
        super().rescale(scale)
        self.log_threshold -= math.log(scale)

    def tensors(self) -> dict[str, Tensor]:
        """With the thresholds themselves."""
        return super().tensors() | {"threshold": self.threshold.data}

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        super().set_tensors(tensors)
        self.log_threshold.copy_(tensors["threshold"].clamp_min(1e-30).log())


def jump(pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """pre · [pre > θ] and [pre > θ], with the straight-through gradients to θ.

    With K the indicator of |pre − θ| < ε/2, the gradients to θ are −θ/ε · K and −1/ε · K.
    """
    return _Jump.apply(pre, threshold, bandwidth)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        active = (pre > threshold).to(pre.dtype)
        ctx.save_for_backward(pre, threshold, active)
        ctx.bandwidth = bandwidth
        return pre * active, active.clone()

    @staticmethod
    def backward(ctx, to_value, to_count):
        pre, threshold, active = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return to_value * active, -near * (threshold * to_value + to_count), None
