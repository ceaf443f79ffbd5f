"""Base class, configuration and file names of all sparse autoencoders (SAEs).

z = act(x W_enc + b_enc) are the latents, x̂ = z W_dec + b_dec the reconstruction, both in the
model's own units: the trainer normalises activations and folds that into the weights at the end.
The rows of W_dec have norm 1, so a latent's value is the length of its contribution. A transcoder
is the same with another target: it reads one site and predicts another.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from dataclasses import replace as dataclass_replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.sae.losses import AUXK_ROWS, Losses, auxk_loss
from helpers.sae.sparse import (
    ActiveSet,
    DenseActiveSet,
    mean_squared_norm,
    sparse_decode,
    sparse_encode,
)

ENCODE_BATCH = 512  # vectors encoded at a time where all latents of each are needed
RENAMED_FIELDS = {"bandwidth": "jumprelu_bandwidth", "widths": "matryoshka_widths"}
"""Names of `SAEConfig`'s fields in older files; `sparsity` was both coefficients."""


@dataclass(frozen=True)
class SAEConfig:
    """Configuration of one SAE; `to_dict` and `from_dict` convert it to plain data and back.

    Attributes:
        architecture: A name in `helpers.sae.ARCHITECTURES`.
        d_in: Width of its input.
        d_sae: Number of latents.
        d_out: Width of its output; 0 means `d_in`.
        k: Active latents per vector (TopK), or on average (BatchTopK, Matryoshka); else 0.
        l1_coefficient: Weight of the L1 loss (ReLU, gated); else 0.
        l0_coefficient: Weight of the L0 loss (JumpReLU); else 0.
        jumprelu_bandwidth: Width of JumpReLU's straight-through estimator, in normalised units.
        matryoshka_widths: Sizes of Matryoshka's nested dictionaries, the last being `d_sae`.
        site: Its input, one of `helpers.tracing.SITES`.
        target: The site that it predicts; empty for its input.
        layer: Index of the block.
        model: Name of the model.
        model_hash: `helpers.models.model_hash` of the model.
        seed: Seed of the initialisation.
    """

    architecture: str
    d_in: int
    d_sae: int
    d_out: int = 0
    k: int = 0
    l1_coefficient: float = 0.0
    l0_coefficient: float = 0.0
    jumprelu_bandwidth: float = 0.0
    matryoshka_widths: tuple[int, ...] = ()
    site: str = ""
    target: str = ""
    layer: int = 0
    model: str = ""
    model_hash: str = ""
    seed: int = 0

    def __post_init__(self):
        """Fill in `d_out` and check the sizes.

        Raises:
            UserError: A size is not positive, or `k` is larger than the dictionary.
        """
        object.__setattr__(self, "d_out", self.d_out or self.d_in)
        object.__setattr__(self, "matryoshka_widths", tuple(self.matryoshka_widths))
        for name in ("d_in", "d_sae", "d_out"):
            if getattr(self, name) < 1:
                raise UserError(f"An SAE needs {name} of at least 1, not {getattr(self, name)}.")
        if not 0 <= self.k <= self.d_sae:
            raise UserError(
                f"k is {self.k}, but the dictionary has only {self.d_sae} latents: choose k "
                f"between 1 and {self.d_sae}."
            )

    @property
    def transcoder(self) -> bool:
        """True if it predicts another site than its input."""
        return bool(self.target) and self.target != self.site

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SAEConfig":
        """Make a configuration from plain data; names of older files are accepted.

        Raises:
            UserError: A field is missing or unknown.
        """
        values = with_present_names(values)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"An SAE has no number called '{unknown[0]}'.")
        if missing := [n for n in ("architecture", "d_in", "d_sae") if n not in values]:
            raise UserError(f"The SAE's numbers lack '{missing[0]}'.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data, for JSON."""
        return asdict(self) | {"matryoshka_widths": list(self.matryoshka_widths)}

    def to_old_dict(self) -> dict[str, Any]:
        """Convert to plain data under the names of older files, for their checksums."""
        values = self.to_dict()
        coefficients = values.pop("l1_coefficient"), values.pop("l0_coefficient")
        for old, present in RENAMED_FIELDS.items():
            values[old] = values.pop(present)
        return values | {"sparsity": max(coefficients)}

    def replace(self, **changes: Any) -> "SAEConfig":
        """Copy with some fields changed."""
        return dataclass_replace(self, **changes)


def with_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the fields of an older file; a name whose present form is there too stays."""
    values = dict(values)
    coefficient = "l0_coefficient" if values.get("architecture") == "jumprelu" else "l1_coefficient"
    for old, present in {**RENAMED_FIELDS, "sparsity": coefficient}.items():
        if old in values and present not in values:
            values[present] = values.pop(old)
    return values


class SAE(nn.Module):
    """One sparse autoencoder or transcoder; a subclass per architecture.

    Attributes:
        cfg: Its configuration.
        encoder: (d_sae, d_in), one row per latent: few latents are few stretches of memory.
        b_enc: (d_sae,).
        W_dec: (d_sae, d_out), rows of norm 1.
        b_dec: (d_out,).
    """

    def __init__(self, cfg: SAEConfig):
        """Draw random unit rows; the encoder is tied to the decoder where the widths allow.

        Args:
            cfg: Its configuration; `cfg.seed` draws the rows.
        """
        super().__init__()
        self.cfg = cfg
        generator = torch.Generator().manual_seed(cfg.seed)
        rows = torch.randn(cfg.d_sae, cfg.d_out, generator=generator)
        self.W_dec = nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        if cfg.d_in != cfg.d_out:
            rows = torch.randn(cfg.d_sae, cfg.d_in, generator=generator)
        self.encoder = nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_out))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder in the usual orientation; a view of the parameter."""
        return self.encoder.T

    def hidden_pre(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Compute the pre-activations x W_enc + b_enc."""
        return torch.addmm(self.b_enc, x, self.encoder.T)

    def activate(self, hidden_pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Compute latents from pre-activations, at inference."""
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Compute all latents of each vector, at inference."""
        return self.activate(self.hidden_pre(x))

    def decode(self, z: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_out"]:
        """Sum the latents' contributions and the bias."""
        return torch.addmm(self.b_dec, z, self.W_dec)

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """Reconstruct `x` (a transcoder predicts its target)."""
        return self.decode(self.encode(x))

    def tensors(self) -> dict[str, Tensor]:
        """Collect the tensors of a file, under SAELens's names."""
        return {
            "W_enc": self.W_enc.data,
            "b_enc": self.b_enc.data,
            "W_dec": self.W_dec.data,
            "b_dec": self.b_dec.data,
        }

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of a file, as `tensors` names them, into the parameters.

        Raises:
            UserError: A tensor has another shape.
        """
        for name, tensor in self.tensors().items():
            if tensor.shape != tensors[name].shape:
                raise UserError(
                    f"{name} is {tuple(tensors[name].shape)} and should be {tuple(tensor.shape)}."
                )
            tensor.copy_(tensors[name])

    def select(self, x: Float[Tensor, "n d_in"]) -> ActiveSet | DenseActiveSet:
        """Select the pairs (vector, latent) that take part in a training step; no gradients."""
        raise NotImplementedError

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        sparsity_warmup: float = 1.0,
    ) -> Losses:
        """Compute the training loss: squared error of the reconstruction, and the AuxK loss.

        Args:
            x: Input, in the trainer's normalised units (mean 0, mean squared length 1).
            y: Target; for an SAE the same as `x`.
            dead: Indices of latents that have not been active for long.
            sparsity_warmup: Factor of sparsity losses, which rises from 0 to 1.
        """
        with torch.no_grad():
            active = self.select(x)
        values = sparse_encode(x, self.encoder, self.b_enc, active).relu()
        error = sparse_decode(values, self.W_dec, self.b_dec, active, minus=y)
        mse = mean_squared_norm(error)
        return Losses(
            total=mse + auxk_loss(self, x, -error[:AUXK_ROWS], dead),
            mse=mse,
            firing_counts=active.firing_counts(values.detach()),
        )

    @torch.no_grad()
    def fold_normalization(
        self,
        input_center: Float[Tensor, " d_in"],
        input_scale: float,
        output_center: Float[Tensor, " d_out"],
        output_scale: float,
    ) -> None:
        """Fold the trainer's units, (x − center) · scale, into the weights."""
        # Latents come out in the target's units, so that W_dec's rows keep norm 1.
        self.encoder *= input_scale / output_scale
        self.divide_biases(output_scale)
        self.subtract_from_input(input_center)
        self.b_dec.div_(output_scale).add_(output_center)

    @torch.no_grad()
    def subtract_from_input(self, center: Float[Tensor, " d_in"]) -> None:
        """Change the biases so that x − `center` is encoded where x was."""
        self.b_enc -= self.encoder @ center

    @torch.no_grad()
    def divide_biases(self, scale: float) -> None:
        """Divide the encoder's biases and thresholds by `scale`."""
        self.b_enc /= scale

    @torch.no_grad()
    def init_threshold(self, value: float) -> None:
        """Let latents start active where x W_enc exceeds `value`."""
        self.b_enc.fill_(-value)

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Move the norms of W_dec's rows to the encoder, so that the rows have norm 1.

        The reconstruction stays the same where the activation commutes with scaling a latent.
        """
        norms = torch.linalg.vector_norm(self.W_dec, dim=1).clamp_min(1e-8)
        self.W_dec /= norms[:, None]
        self.encoder *= norms[:, None]
        self.b_enc *= norms

    def check_trainable(self) -> None:
        """Refuse to train without the numbers that the loss needs.

        Raises:
            UserError: One is missing.
        """

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Scale the decoder's rows back to norm 1."""
        self.W_dec /= torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min(1e-8)
