"""Read and write through the active latents only, with gradients.

Few latents of a vector are active, so everything but the encoder's product is a sum over pairs
(vector, latent). The pairs of a batch are a `Code`; reading and writing go through `embedding_bag`,
whose sums run over stretches of memory: decoding gathers rows of W_dec, and a latent's gradient
gathers the vectors on which it was active, after sorting the pairs by latent. All of it is plain
PyTorch. Which pairs are active is found in `helpers.sae.selection`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_bag = torch.nn.functional.embedding_bag
_weight_gradient = torch.ops.aten._embedding_bag_per_sample_weights_backward


class Code:
    """The active pairs of a batch, sorted by bag; a bag is a vector, or a part of one.

    Attributes:
        pre: (m,) pre-activation of each pair, without gradient.
        latents: (m,) its latent, int32.
        bags: (m,) its bag, int32, ascending.
        n: Vectors.
        d_sae: Latents.
        parts: Bags per vector, 1 but for Matryoshka.
    """

    dense = False

    def __init__(
        self,
        pre: Float[Tensor, " m"],
        latents: Int[Tensor, " m"],
        bags: Int[Tensor, " m"],
        *,
        n: int,
        d_sae: int,
        parts: int = 1,
    ):
        """Pairs as they were selected."""
        self.pre, self.latents, self.bags = pre, latents.int(), bags.int()
        self.n, self.d_sae, self.parts = n, d_sae, parts
        self._by_latent: tuple[Tensor, Tensor] | None = None

    @property
    def bounds(self) -> Int[Tensor, " bags"]:
        """Where each bag begins."""
        return _starts(self.bags, self.n * self.parts)

    @property
    def by_latent(self) -> tuple[Int[Tensor, " m"], Int[Tensor, " d_sae"]]:
        """The pairs' order by latent, and where each latent begins in it."""
        if self._by_latent is None:
            order = torch.sort(self.latents).indices
            self._by_latent = order, _starts(self.latents, self.d_sae)
        return self._by_latent

    def per_pair(self, of_latent: Float[Tensor, " d_sae"]) -> Float[Tensor, " m"]:
        """A number of each latent, at each pair; differentiable."""
        return _Spread.apply(of_latent, self.latents)

    def fired(self, values: Float[Tensor, " m"]) -> Int[Tensor, " d_sae"]:
        """On how many vectors each latent is positive."""
        return torch.bincount(self.latents[values > 0], minlength=self.d_sae)

    def split(self, widths: tuple[int, ...]) -> "Code":
        """The same pairs with a bag for every vector and nested part of the dictionary."""
        ends = torch.tensor(widths, device=self.latents.device, dtype=self.latents.dtype)
        part = torch.bucketize(self.latents, ends, right=True)
        bags, order = torch.sort(self.bags * len(widths) + part, stable=True)
        return Code(
            self.pre[order],
            self.latents[order],
            bags,
            n=self.n,
            d_sae=self.d_sae,
            parts=len(widths),
        )


class DenseCode:
    """The same for a batch in which too many latents are active: pairs are a whole matrix.

    Attributes:
        active: (n, d_sae) 1 where a pair is active, else 0.
    """

    dense = True
    parts = 1

    def __init__(self, active: Float[Tensor, "n d_sae"]):
        """Pairs as a mask."""
        self.active = active
        self.n, self.d_sae = active.shape

    def per_pair(self, of_latent: Float[Tensor, " d_sae"]) -> Float[Tensor, "1 d_sae"]:
        """A number of each latent, to be broadcast over vectors."""
        return of_latent[None]

    def fired(self, values: Float[Tensor, "n d_sae"]) -> Int[Tensor, " d_sae"]:
        """On how many vectors each latent is positive."""
        return (values > 0).sum(0)


def read(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    code: Code | DenseCode,
) -> Float[Tensor, " m"]:
    """Pre-activations of the code's pairs, with gradients to `encoder` and `bias`."""
    if code.dense:
        return torch.addmm(bias, x, encoder.T) * code.active
    return _Read.apply(x, encoder, bias, code)


def write(
    values: Float[Tensor, " m"],
    W_dec: Float[Tensor, "d_sae d_out"],
    bias: Float[Tensor, " d_out"],
    code: Code | DenseCode,
    *,
    minus: Float[Tensor, "bags d_out"] | None = None,
) -> Float[Tensor, "bags d_out"]:
    """What each bag's latents write together, `minus` something; a vector's first bag has the bias.

    With `minus` the targets it is the error, without a copy of what was written.
    """
    if code.dense:
        written = torch.addmm(bias, values, W_dec)
        return written if minus is None else written - minus
    return _Write.apply(values, W_dec, bias, code, minus)


def mean_square(error: Float[Tensor, "n d_out"]) -> Float[Tensor, ""]:
    """Mean squared length, in one pass over memory each way."""
    return _MeanSquare.apply(error)


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, error):
        ctx.save_for_backward(error)
        return torch.linalg.vector_norm(error).square() / len(error)

    @staticmethod
    def backward(ctx, gradient):
        (error,) = ctx.saved_tensors
        return error * (2 * gradient / len(error))


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, encoder, bias, code):
        ctx.save_for_backward(x)
        ctx.code = code
        return code.pre.clone()

    @staticmethod
    def backward(ctx, gradient):
        (x,), code = ctx.saved_tensors, ctx.code
        order, starts = code.by_latent
        vectors = code.bags // code.parts if code.parts > 1 else code.bags
        d_encoder = _bag(
            vectors[order], x, starts, mode="sum", per_sample_weights=gradient[order].contiguous()
        )
        return None, d_encoder, _sum_by(gradient, code.latents, code.d_sae), None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec, bias, code, minus):
        values = values.contiguous()
        ctx.save_for_backward(values, W_dec)
        ctx.code, ctx.bounds = code, code.bounds
        out = _bag(code.latents, W_dec, ctx.bounds, mode="sum", per_sample_weights=values)
        out[:: code.parts] += bias
        return out if minus is None else out.sub_(minus)

    @staticmethod
    def backward(ctx, gradient):
        (values, W_dec), code = ctx.saved_tensors, ctx.code
        gradient = gradient.contiguous()
        d_values = _weight_gradient(
            gradient, W_dec, code.latents, ctx.bounds, code.bags, 0, -1
        )  # each pair's row of W_dec times its bag's gradient
        order, starts = code.by_latent
        d_rows = _bag(
            code.bags[order], gradient, starts, mode="sum", per_sample_weights=values[order]
        )
        return d_values, d_rows, gradient[:: code.parts].sum(0), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, of_latent, latents):
        ctx.save_for_backward(latents)
        ctx.d_sae = len(of_latent)
        return of_latent[latents]

    @staticmethod
    def backward(ctx, gradient):
        (latents,) = ctx.saved_tensors
        return _sum_by(gradient, latents, ctx.d_sae), None


def _sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, index, values)


def _starts(index: Tensor, size: int) -> Tensor:
    """Where each of `size` values would begin among `index`, sorted."""
    counts = torch.bincount(index, minlength=size)
    return (counts.cumsum(0) - counts).int()
