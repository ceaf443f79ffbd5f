"""Find the active latents: the largest, or all above a threshold, without a full sort.

The encoder's product is made in blocks of rows that stay in the processor's cache until the few
largest have been picked, so no (batch, dictionary) tensor is ever kept.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.sae.kernels import Code, DenseCode

BLOCK_BYTES = 16 << 20  # a block of pre-activations: large for the product, small for the cache
GROUP = 8  # members of a group in the staged selection
PLAIN = 256  # rows this short are sorted out by `topk` itself
DENSE = 1 / 32  # from this share of active pairs a dense product is faster
CANDIDATES = 4  # times k: how many of each row are looked at where there is no guess


def pre_blocks(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
) -> Iterator[tuple[int, Float[Tensor, "rows d_sae"]]]:
    """Pre-activations in blocks of rows; each block is overwritten by the next.

    Yields:
        The first row, and the block.
    """
    step = max(64, BLOCK_BYTES // (4 * len(encoder)))
    room = x.new_empty(min(step, len(x)), len(encoder))
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        yield start, torch.addmm(bias, rows, encoder.T, out=room[: len(rows)])


def top_k(pre: Float[Tensor, "n width"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and where they are, in no order, without looking at all twice.

    The k largest lie in the k groups with the largest maxima; those groups are found the same way,
    and only their members are compared.
    """
    n, width = pre.shape
    if width <= max(PLAIN, 2 * GROUP * k) or width % GROUP:
        return pre.topk(k, dim=1, sorted=False)
    groups = pre.view(n, GROUP, width // GROUP)  # members of a group lie width / GROUP apart
    best = top_k(groups.amax(1), k)[1]
    members = (best[:, None] + _strides(width, pre.device)).view(n, -1)
    top = pre.gather(1, members).topk(k, dim=1, sorted=False)
    return top.values, members.gather(1, top.indices)


def _strides(width: int, device) -> Int[Tensor, "GROUP 1"]:
    return torch.arange(0, width, width // GROUP, device=device)[:, None]


def pick_top(x, encoder, bias, k: int) -> Code:
    """Each vector's k largest pre-activations."""
    found = [top_k(block, k) for _, block in pre_blocks(x, encoder, bias)]
    values, latents = (torch.cat(t).flatten() for t in zip(*found, strict=True))
    bags = torch.arange(len(x), device=x.device, dtype=torch.int32).repeat_interleave(k)
    return Code(values, latents, bags, n=len(x), d_sae=len(encoder))


def pick_above(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    threshold: float | Float[Tensor, " d_sae"] = 0.0,
) -> Code | DenseCode:
    """All pre-activations above a threshold, one for all latents or one for each."""
    offset = bias - threshold
    limit = int(DENSE * len(x) * len(encoder))
    parts, total = [], 0
    for start, block in pre_blocks(x, encoder, offset):
        rows, latents = _positive(block)
        total += len(rows)
        if total > limit:
            pre = torch.addmm(offset, x, encoder.T)
            return DenseCode((pre > 0).to(x.dtype))
        parts.append((block[rows, latents], latents, rows + start))
    values, latents, bags = (torch.cat(t) for t in zip(*parts, strict=True))
    back = threshold[latents] if isinstance(threshold, Tensor) else threshold
    return Code(values + back, latents, bags, n=len(x), d_sae=len(encoder))


def _positive(block: Float[Tensor, "n width"]) -> tuple[Tensor, Tensor]:
    """Rows and columns of the positive entries, by row; whole groups without any are skipped."""
    n, width = block.shape
    if width % GROUP:
        return (block > 0).nonzero().unbind(1)
    group_max = block.view(n, GROUP, width // GROUP).amax(1)
    rows, columns = (group_max > 0).nonzero().unbind(1)
    members = columns[:, None] + _strides(width, block.device)[:, 0]  # (hits, GROUP)
    hit, member = (block[rows[:, None], members] > 0).nonzero().unbind(1)
    return rows[hit], members[hit, member]


def pick_batch_top(x, encoder, bias, k: int, guess: float) -> tuple[Code, float]:
    """The k · n largest pre-activations of the batch, and the smallest of them.

    Args:
        x: (n, d_in).
        encoder: (d_sae, d_in).
        bias: (d_sae,).
        k: How many per vector on average.
        guess: A threshold that lets through more than that, but not many times more: the last
            batch's, lowered; minus infinity for the first batch.
    """
    wanted = k * len(x)
    code = pick_above(x, encoder, bias, guess) if guess > 0 else None
    if code is None or code.dense or len(code.pre) < wanted:
        # Each row's few largest hold k · n that are close to the batch's; what exceeds the least
        # of these holds the batch's.
        near = pick_top(x, encoder, bias, min(CANDIDATES * k, len(encoder)))
        least = float(near.pre.topk(wanted, sorted=False).values.min())
        code = pick_above(x, encoder, bias, least - 1e-6 * abs(least))
        if code.dense or len(code.pre) < wanted:
            code = near
    if len(code.pre) > wanted:
        keep = code.pre.topk(wanted, sorted=False).indices.sort().values
        pairs = code.pre[keep], code.latents[keep], code.bags[keep]
        code = Code(*pairs, n=code.n, d_sae=code.d_sae)
    return code, float(code.pre.min())
