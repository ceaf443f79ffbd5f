"""Running means and covariances of activations, and those of the MLP's keys over a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.activations import passes
from helpers.artifacts import cached_folder, content_hash, read_tensors, write_tensors
from helpers.models import anatomy, model_hash
from helpers.tracing.states import check_sites

COVARIANCE_ROWS = 4096  # rows summed in float32 before they are added in float64


@dataclass
class Moments:
    """Running first and second moments of activations, in float64.

    Attributes:
        n: Vectors seen.
        sum: (width,) their sum.
        second: (width, width) sum of x xᵀ.
    """

    n: int
    sum: Float[Tensor, " width"]
    second: Float[Tensor, "width width"]

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """Nothing seen yet."""
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(0, zeros, torch.zeros(width, width, dtype=torch.float64))

    def add(self, x: Float[Tensor, "n width"]) -> None:
        """See more vectors; products in float32 blocks, their sum in float64.

        A block is short enough that float32's rounding stays near 1e-6 of the diagonal, and the
        blocks' sum has float64's.
        """
        for block in x.float().split(COVARIANCE_ROWS):
            self.second += (block.T @ block).double().cpu()
            self.sum += block.double().sum(0).cpu()
            self.n += len(block)

    def mean(self) -> Float[Tensor, " width"]:
        """E x."""
        return self.sum / self.n

    def moment(self) -> Float[Tensor, "width width"]:
        """E x xᵀ, the uncentred covariance that ROME and MEMIT whiten keys with."""
        return self.second / self.n

    def covariance(self) -> Float[Tensor, "width width"]:
        """E (x − E x)(x − E x)ᵀ."""
        return self.moment() - torch.outer(self.mean(), self.mean())


def key_moments(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences t"],
    *,
    layers: Sequence[int],
    site: str = "neurons",
    first: int = 1,
) -> dict[int, Moments]:
    """Moments of the MLP's keys (or of another site) over a corpus, nothing written but the result.

    Args:
        model: Any model of a known family.
        tokens: Sequences of one length.
        layers: Which layers.
        site: Which activations; `neurons` are the keys that W_out reads.
        first: Positions before this are left out.

    Returns:
        Layer → its moments; kept in the cache by the model's hash and the tokens.
    """
    parts = anatomy(model)
    keys = [
        (s, i) for i in sorted({parts.check_layer(i) for i in layers}) for s in check_sites([site])
    ]
    name = {
        "model": model_hash(model),
        "tokens": content_hash(tokens),
        "keys": keys,
        "first": first,
    }

    def build(folder: Path) -> None:
        found: dict[int, Moments] = {}
        for _, values in passes(model, tokens, keys):
            for (_, layer), value in values.items():
                rows = value[:, first:].flatten(0, 1)
                found.setdefault(layer, Moments.empty(rows.shape[1])).add(rows)
        for layer, m in found.items():
            n = torch.tensor([m.n])
            write_tensors(_moments(folder, layer), {"n": n, "sum": m.sum, "second": m.second})

    folder = cached_folder("moments", name, build)
    read = {layer: read_tensors(_moments(folder, layer))[0] for _, layer in keys}
    return {i: Moments(int(t["n"]), t["sum"], t["second"]) for i, t in read.items()}


def _moments(folder: Path, layer: int) -> Path:
    return folder / f"{layer}.safetensors"
