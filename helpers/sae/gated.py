"""Gated SAE (Rajamanoharan et al. 2024, "Improving dictionary learning with gated SAEs")."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.sae.base import SAEConfig
from helpers.sae.kernels import mean_square, read, write
from helpers.sae.losses import Losses
from helpers.sae.relu import ReLU


class Gated(ReLU):
    """One path decides whether a latent is active, another how strongly, so L1 shrinks nothing.

    With π = x W_enc + b_enc the gate is [π > 0] and the magnitude ReLU(exp(r) ⊙ x W_enc + b_mag).

    Attributes:
        log_gain: (d_sae,) r, by which a magnitude's row differs from its gate's.
        b_mag: (d_sae,) the magnitude's bias.
    """

    def __init__(self, cfg: SAEConfig):
        """As `ReLU`."""
        super().__init__(cfg)
        self.log_gain = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))

    def _magnitude(self, pre: Tensor, gain: Tensor, b_mag: Tensor, b_enc: Tensor) -> Tensor:
        return ((pre - b_enc) * gain.exp() + b_mag).relu()

    def activate(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Magnitudes where the gate is open."""
        return self._magnitude(pre, self.log_gain, self.b_mag, self.b_enc) * (pre > 0)

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        progress: float = 1.0,
    ) -> Losses:
        """Mean of ‖y − ŷ‖² + λ Σ ReLU(π) + ‖y − ŷ_gate‖².

        ŷ_gate decodes ReLU(π) with a decoder that takes no gradient: it teaches the gate, which
        the step function cuts off from the first term.
        """
        with torch.no_grad():
            code = self.select(x)
        gate = read(x, self.encoder, self.b_enc, code)
        numbers = [code.per_pair(v) for v in (self.log_gain, self.b_mag, self.b_enc)]
        values = self._magnitude(gate, *numbers)
        if code.dense:
            values = values * code.active
        error = write(values, self.W_dec, self.b_dec, code, minus=y)
        decoder = self.W_dec.detach(), self.b_dec.detach()
        taught = mean_square(write(gate.relu(), *decoder, code, minus=y))
        mse = mean_square(error)
        return Losses(
            total=mse + progress * self.cfg.sparsity * gate.relu().sum() / len(x) + taught,
            mse=mse,
            fired=code.fired(values.detach()),
        )

    @torch.no_grad()
    def shift(self, center: Float[Tensor, " d_in"]) -> None:
        """As `SAE.shift`."""
        super().shift(center)
        self.b_mag -= (self.encoder @ center) * self.log_gain.exp()

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """As `SAE.rescale`."""
        super().rescale(scale)
        self.b_mag /= scale

    @torch.no_grad()
    def init_threshold(self, value: float) -> None:
        """As `SAE.init_threshold`, for gate and magnitude."""
        super().init_threshold(value)
        self.b_mag.fill_(-value)

    def tensors(self) -> dict[str, Tensor]:
        """SAELens's names: the gate's bias is `b_gate`, the log gain `r_mag`."""
        found = super().tensors()
        found["b_gate"] = found.pop("b_enc")
        return found | {"r_mag": self.log_gain.data, "b_mag": self.b_mag.data}
