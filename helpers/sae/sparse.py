"""Sparse encoding and decoding: sums over active latents only, with gradients.

Few latents of a vector are active, so everything but the encoder's product is a sum over pairs
(vector, latent). The pairs of a batch are an `ActiveSet`. Encoding and decoding use
`embedding_bag`, whose sums run over stretches of memory: decoding gathers rows of W_dec. A latent's
gradient gathers the vectors on which it was active, after sorting the pairs by latent. All of it is
plain PyTorch. `helpers.sae.selection` finds the active pairs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_embedding_bag = torch.nn.functional.embedding_bag
_embedding_bag_weight_gradient = torch.ops.aten._embedding_bag_per_sample_weights_backward


class ActiveSet:
    """The active pairs of a batch, sorted by bag; a bag is a vector, or a part of one.

    Attributes:
        hidden_pre: (m,) pre-activation of each pair, without gradient.
        latents: (m,) latent of each pair, int32.
        bags: (m,) bag of each pair, int32, ascending.
        n: Number of vectors.
        d_sae: Number of latents.
        parts: Bags per vector, 1 but for Matryoshka.
    """

    dense = False

    def __init__(
        self,
        hidden_pre: Float[Tensor, " m"],
        latents: Int[Tensor, " m"],
        bags: Int[Tensor, " m"],
        *,
        n: int,
        d_sae: int,
        parts: int = 1,
    ):
        """Keep the pairs that were selected; see the class for the arguments."""
        self.hidden_pre, self.latents, self.bags = hidden_pre, latents.int(), bags.int()
        self.n, self.d_sae, self.parts = n, d_sae, parts
        self._by_latent: tuple[Tensor, Tensor] | None = None

    @property
    def bag_starts(self) -> Int[Tensor, " bags"]:
        """Index of each bag's first pair."""
        return _starts(self.bags, self.n * self.parts)

    @property
    def by_latent(self) -> tuple[Int[Tensor, " m"], Int[Tensor, " d_sae"]]:
        """The pairs' order by latent, and the index of each latent's first pair in it."""
        if self._by_latent is None:
            order = torch.sort(self.latents).indices
            self._by_latent = order, _starts(self.latents, self.d_sae)
        return self._by_latent

    def per_pair(self, per_latent: Float[Tensor, " d_sae"]) -> Float[Tensor, " m"]:
        """Gather one number per latent at each pair; differentiable."""
        return _GatherLatents.apply(per_latent, self.latents)

    def firing_counts(self, values: Float[Tensor, " m"]) -> Int[Tensor, " d_sae"]:
        """Count the vectors on which each latent is positive."""
        return torch.bincount(self.latents[values > 0], minlength=self.d_sae)

    def split(self, widths: tuple[int, ...]) -> "ActiveSet":
        """Give every nested part of the dictionary a bag of its own in each vector."""
        ends = torch.tensor(widths, device=self.latents.device, dtype=self.latents.dtype)
        part = torch.bucketize(self.latents, ends, right=True)
        bags, order = torch.sort(self.bags * len(widths) + part, stable=True)
        return ActiveSet(
            self.hidden_pre[order],
            self.latents[order],
            bags,
            n=self.n,
            d_sae=self.d_sae,
            parts=len(widths),
        )


class DenseActiveSet:
    """An active set with too many pairs for sparse sums: a whole matrix.

    Attributes:
        mask: (n, d_sae) 1 where a pair is active, else 0.
    """

    dense = True
    parts = 1

    def __init__(self, mask: Float[Tensor, "n d_sae"]):
        """Keep the mask of active pairs."""
        self.mask = mask
        self.n, self.d_sae = mask.shape

    def per_pair(self, per_latent: Float[Tensor, " d_sae"]) -> Float[Tensor, "1 d_sae"]:
        """Shape one number per latent so that it broadcasts over vectors."""
        return per_latent[None]

    def firing_counts(self, values: Float[Tensor, "n d_sae"]) -> Int[Tensor, " d_sae"]:
        """Count the vectors on which each latent is positive."""
        return (values > 0).sum(0)


def sparse_encode(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    active: ActiveSet | DenseActiveSet,
) -> Float[Tensor, " m"]:
    """Compute the pre-activations of the active pairs, with gradients to `encoder` and `bias`."""
    if active.dense:
        return torch.addmm(bias, x, encoder.T) * active.mask
    return _SparseEncode.apply(x, encoder, bias, active)


def sparse_decode(
    values: Float[Tensor, " m"],
    W_dec: Float[Tensor, "d_sae d_out"],
    bias: Float[Tensor, " d_out"],
    active: ActiveSet | DenseActiveSet,
    *,
    minus: Float[Tensor, "bags d_out"] | None = None,
) -> Float[Tensor, "bags d_out"]:
    """Sum each bag's latents times their decoder rows; a vector's first bag has the bias.

    Args:
        values: Latents at the active pairs.
        W_dec: The decoder.
        bias: Its bias.
        active: The active pairs.
        minus: Targets that are subtracted in place: the result is then the error, without a copy
            of the reconstruction.
    """
    if active.dense:
        decoded = torch.addmm(bias, values, W_dec)
        return decoded if minus is None else decoded - minus
    return _SparseDecode.apply(values, W_dec, bias, active, minus)


def mean_squared_norm(error: Float[Tensor, "n d_out"]) -> Float[Tensor, ""]:
    """Compute the mean squared norm of the rows, in one pass over memory each way."""
    return _MeanSquaredNorm.apply(error)


class _MeanSquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, error):
        ctx.save_for_backward(error)
        return torch.linalg.vector_norm(error).square() / len(error)

    @staticmethod
    def backward(ctx, gradient):
        (error,) = ctx.saved_tensors
        return error * (2 * gradient / len(error))


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, encoder, bias, active):
        ctx.save_for_backward(x)
        ctx.active = active
        return active.hidden_pre.clone()  # the selection has already computed them

    @staticmethod
    def backward(ctx, gradient):
        (x,), active = ctx.saved_tensors, ctx.active
        order, starts = active.by_latent
        vectors = active.bags // active.parts if active.parts > 1 else active.bags
        # A latent's encoder gradient: the sum of its vectors, weighted by their gradients.
        d_encoder = _embedding_bag(
            vectors[order], x, starts, mode="sum", per_sample_weights=gradient[order].contiguous()
        )
        return None, d_encoder, _sum_by(gradient, active.latents, active.d_sae), None


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec, bias, active, minus):
        values = values.contiguous()
        ctx.save_for_backward(values, W_dec)
        ctx.active, ctx.bag_starts = active, active.bag_starts
        out = _embedding_bag(
            active.latents, W_dec, ctx.bag_starts, mode="sum", per_sample_weights=values
        )
        out[:: active.parts] += bias
        return out if minus is None else out.sub_(minus)

    @staticmethod
    def backward(ctx, gradient):
        (values, W_dec), active = ctx.saved_tensors, ctx.active
        gradient = gradient.contiguous()
        # A pair's gradient: its row of W_dec times its bag's gradient.
        d_values = _embedding_bag_weight_gradient(
            gradient, W_dec, active.latents, ctx.bag_starts, active.bags, 0, -1
        )
        order, starts = active.by_latent
        # A decoder row's gradient: the sum of its bags' gradients, weighted by the latent's values.
        d_rows = _embedding_bag(
            active.bags[order], gradient, starts, mode="sum", per_sample_weights=values[order]
        )
        return d_values, d_rows, gradient[:: active.parts].sum(0), None, None


class _GatherLatents(torch.autograd.Function):
    @staticmethod
    def forward(ctx, per_latent, latents):
        ctx.save_for_backward(latents)
        ctx.d_sae = len(per_latent)
        return per_latent[latents]

    @staticmethod
    def backward(ctx, gradient):
        (latents,) = ctx.saved_tensors
        return _sum_by(gradient, latents, ctx.d_sae), None


def _sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, index, values)


def _starts(index: Tensor, size: int) -> Tensor:
    """Return where each of `size` values would begin in the sorted `index`."""
    counts = torch.bincount(index, minlength=size)
    return (counts.cumsum(0) - counts).int()
