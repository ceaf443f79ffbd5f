"""What every sparse autoencoder shares: its numbers, its matrices, its protocol.

z = act(x W_enc + b_enc) are the latents, x̂ = z W_dec + b_dec the reconstruction, both in the
model's own units: the trainer normalises activations and folds that into the weights when it is
done. The rows of W_dec have norm 1, so a latent's value is the length of what it writes. A
transcoder is the same with another target: it reads one site and predicts another.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.sae.kernels import Code, DenseCode, mean_square, read, write
from helpers.sae.losses import DEAD_ROWS, Losses, auxk_loss

ROWS = 512  # vectors encoded at a time where all latents of each are needed


@dataclass(frozen=True)
class SAEConfig:
    """The numbers of one SAE; `asdict` and `SAEConfig.from_dict` turn it into a plain dict.

    Attributes:
        architecture: A name in `helpers.sae.ARCHITECTURES`.
        d_in: Width of what it reads.
        d_sae: Latents.
        d_out: Width of what it writes; 0 means `d_in`.
        k: Active latents per vector (TopK), or on average (BatchTopK, Matryoshka); else 0.
        sparsity: Weight of the sparsity loss (ReLU, gated: L1; JumpReLU: L0); else 0.
        bandwidth: Width of JumpReLU's straight-through estimator, in normalised units.
        widths: Sizes of Matryoshka's nested dictionaries, the last being `d_sae`.
        site: What it reads, one of `helpers.tracing.SITES`.
        target: What it predicts; empty: what it reads.
        layer: Of which block.
        model: Name of the model.
        model_hash: `helpers.models.model_hash` of it.
        seed: Of the initialisation.
    """

    architecture: str
    d_in: int
    d_sae: int
    d_out: int = 0
    k: int = 0
    sparsity: float = 0.0
    bandwidth: float = 0.0
    widths: tuple[int, ...] = ()
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
        object.__setattr__(self, "widths", tuple(self.widths))
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
        """Whether it predicts another site than it reads."""
        return bool(self.target) and self.target != self.site

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SAEConfig":
        """The inverse of `asdict`.

        Raises:
            UserError: A field is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"An SAE has no number called '{unknown[0]}'.")
        if missing := [n for n in ("architecture", "d_in", "d_sae") if n not in values]:
            raise UserError(f"The SAE's numbers lack '{missing[0]}'.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {"widths": list(self.widths)}

    def but(self, **changes: Any) -> "SAEConfig":
        """A copy with some numbers changed."""
        return replace(self, **changes)


class SAE(nn.Module):
    """One sparse autoencoder or transcoder; a subclass per architecture.

    Attributes:
        cfg: Its numbers.
        encoder: (d_sae, d_in), a latent a row, so that few latents are few stretches of memory.
        b_enc: (d_sae,).
        W_dec: (d_sae, d_out), rows of norm 1.
        b_dec: (d_out,).
    """

    def __init__(self, cfg: SAEConfig):
        """Random unit rows, the encoder tied to the decoder where the widths allow.

        Args:
            cfg: Its numbers; `cfg.seed` draws the rows.
        """
        super().__init__()
        self.cfg = cfg
        draw = torch.Generator().manual_seed(cfg.seed)
        rows = torch.randn(cfg.d_sae, cfg.d_out, generator=draw)
        self.W_dec = nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        tied = rows if cfg.d_in == cfg.d_out else torch.randn(cfg.d_sae, cfg.d_in, generator=draw)
        self.encoder = nn.Parameter(tied / tied.norm(dim=1, keepdim=True))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_out))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder in the usual orientation; a view of the parameter."""
        return self.encoder.T

    def pre(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """What the nonlinearity acts on: x W_enc + b_enc."""
        return torch.addmm(self.b_enc, x, self.encoder.T)

    def activate(self, pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Latents from `pre`, at inference."""
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """All latents of each vector, at inference."""
        return self.activate(self.pre(x))

    def decode(self, z: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_out"]:
        """What the latents write together."""
        return torch.addmm(self.b_dec, z, self.W_dec)

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """The reconstruction of `x` (a transcoder's prediction)."""
        return self.decode(self.encode(x))

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds, under SAELens's names."""
        return {
            "W_enc": self.W_enc.data,
            "b_enc": self.b_enc.data,
            "W_dec": self.W_dec.data,
            "b_dec": self.b_dec.data,
        }

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for name, tensor in self.tensors().items():
            if tensor.shape != tensors[name].shape:
                raise UserError(
                    f"{name} is {tuple(tensors[name].shape)} and should be {tuple(tensor.shape)}."
                )
            tensor.copy_(tensors[name])

    def select(self, x: Float[Tensor, "n d_in"]) -> Code | DenseCode:
        """The pairs (vector, latent) that take part in a training step; no gradients."""
        raise NotImplementedError

    def loss(
        self,
        x: Float[Tensor, "n d_in"],
        y: Float[Tensor, "n d_out"],
        *,
        dead: Int[Tensor, " d"] | None = None,
        progress: float = 1.0,
    ) -> Losses:
        """The training loss: squared error of the active latents' sum, and dead latents' part.

        Args:
            x: What is read, in the trainer's normalised units (mean 0, mean squared length 1).
            y: What is to be written; for an SAE the same as `x`.
            dead: Latents that have not been active for long.
            progress: Sparsity losses are multiplied by it while they warm up from 0 to 1.
        """
        with torch.no_grad():
            code = self.select(x)
        values = read(x, self.encoder, self.b_enc, code).relu()
        error = write(values, self.W_dec, self.b_dec, code, minus=y)
        mse = mean_square(error)
        return Losses(
            total=mse + auxk_loss(self, x, -error[:DEAD_ROWS], dead),
            mse=mse,
            fired=code.fired(values.detach()),
        )

    @torch.no_grad()
    def fold(
        self,
        read_center: Float[Tensor, " d_in"],
        read_scale: float,
        write_center: Float[Tensor, " d_out"],
        write_scale: float,
    ) -> None:
        """From units (x − center) · scale, in which it was trained, to the model's own."""
        self.encoder *= read_scale / write_scale
        self.rescale(write_scale)
        self.shift(read_center)
        self.b_dec.div_(write_scale).add_(write_center)

    @torch.no_grad()
    def shift(self, center: Float[Tensor, " d_in"]) -> None:
        """Read x − `center` where x was read."""
        self.b_enc -= self.encoder @ center

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Divide all latents by `scale`: of the encoder's side, its bias and thresholds."""
        self.b_enc /= scale

    @torch.no_grad()
    def init_threshold(self, value: float) -> None:
        """Let latents start active where x W_enc exceeds `value`."""
        self.b_enc.fill_(-value)

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Move the lengths of W_dec's rows to the encoder, so that they have norm 1.

        What is written stays the same where the activation commutes with scaling a latent.
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
        """Bring the decoder's rows back to norm 1."""
        self.W_dec /= torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min(1e-8)
