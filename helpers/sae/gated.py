"""Gated SAE (Rajamanoharan et al. 2024, "Improving dictionary learning with gated SAEs")."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.sae.base import SAEConfig
from helpers.sae.losses import Losses
from helpers.sae.relu import ReLUSAE
from helpers.sae.sparse import mean_squared_norm, sparse_decode, sparse_encode


class GatedSAE(ReLUSAE):
    """An SAE in which a gate decides whether a latent is active, and a magnitude how strongly.

    The L1 loss is on the gate, so it does not shrink magnitudes. With π = x W_enc + b_enc the gate
    is [π > 0] and the magnitude ReLU(exp(r) ⊙ x W_enc + b_mag).

    Attributes:
        log_gain: (d_sae,) r, the log ratio of a magnitude's encoder row to its gate's.
        b_mag: (d_sae,) the magnitude's bias.
    """

    def __init__(self, cfg: SAEConfig):
        """Draw the weights; gates and magnitudes start equal.

        Args:
            cfg: Its configuration.
        """
        super().__init__(cfg)
        self.log_gain = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))

    def _magnitude(self, gate_pre: Tensor, log_gain: Tensor, b_mag: Tensor, b_enc: Tensor):
        return ((gate_pre - b_enc) * log_gain.exp() + b_mag).relu()

    def activate(self, hidden_pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Compute the magnitudes where the gate is open, from the gate's pre-activations."""
        magnitude = self._magnitude(hidden_pre, self.log_gain, self.b_mag, self.b_enc)
        return magnitude * (hidden_pre > 0)

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        sparsity_warmup: float = 1.0,
    ) -> Losses:
        """Compute the mean of ‖y − ŷ‖² + λ Σ ReLU(π) + ‖y − ŷ_gate‖²; `dead` is not used.

        ŷ_gate decodes ReLU(π) with a decoder that takes no gradient: it trains the gate, which the
        step function cuts off from the first term.
        """
        with torch.no_grad():
            active = self.select(x)
        gate = sparse_encode(x, self.encoder, self.b_enc, active)
        numbers = [active.per_pair(v) for v in (self.log_gain, self.b_mag, self.b_enc)]
        values = self._magnitude(gate, *numbers)
        if active.dense:
            values = values * active.mask
        error = sparse_decode(values, self.W_dec, self.b_dec, active, minus=y)
        decoder = self.W_dec.detach(), self.b_dec.detach()
        gate_mse = mean_squared_norm(sparse_decode(gate.relu(), *decoder, active, minus=y))
        mse = mean_squared_norm(error)
        sparsity = sparsity_warmup * self.cfg.l1_coefficient * gate.relu().sum() / len(x)
        return Losses(
            total=mse + sparsity + gate_mse,
            mse=mse,
            firing_counts=active.firing_counts(values.detach()),
        )

    @torch.no_grad()
    def subtract_from_input(self, center: Float[Tensor, " d_in"]) -> None:
        """Change both biases so that x − `center` is encoded where x was."""
        super().subtract_from_input(center)
        self.b_mag -= (self.encoder @ center) * self.log_gain.exp()

    @torch.no_grad()
    def divide_biases(self, scale: float) -> None:
        """Divide the biases of gate and magnitude by `scale`."""
        super().divide_biases(scale)
        self.b_mag /= scale

    @torch.no_grad()
    def init_threshold(self, value: float) -> None:
        """Let gates and magnitudes start active where x W_enc exceeds `value`."""
        super().init_threshold(value)
        self.b_mag.fill_(-value)

    def tensors(self) -> dict[str, Tensor]:
        """Collect the tensors of a file: SAELens calls the gate's bias `b_gate`, r `r_mag`."""
        tensors = super().tensors()
        tensors["b_gate"] = tensors.pop("b_enc")
        return tensors | {"r_mag": self.log_gain.data, "b_mag": self.b_mag.data}
