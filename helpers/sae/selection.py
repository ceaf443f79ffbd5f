"""Selection of the active latents: the largest, or all above a threshold, without a full sort.

The encoder's product is computed in blocks of rows that stay in the processor's cache until their
largest entries are selected, so no (batch, dictionary) tensor is ever stored.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.sae.sparse import ActiveSet, DenseActiveSet

BLOCK_BYTES = 16 << 20  # a block of pre-activations: large for the product, small for the cache
GROUP_SIZE = 8  # entries of a group in the staged selection
DIRECT_WIDTH = 256  # rows up to this width are passed to `topk` as they are
DENSE_FRACTION = 1 / 32  # from this fraction of active pairs a dense product is faster
CANDIDATES_PER_K = 4  # times k: entries per row that are considered where there is no guess


def hidden_pre_blocks(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
) -> Iterator[tuple[int, Float[Tensor, "rows d_sae"]]]:
    """Compute pre-activations in blocks of rows; each block is overwritten by the next.

    Yields:
        (index of the first row, block).
    """
    step = max(64, BLOCK_BYTES // (4 * len(encoder)))
    out = x.new_empty(min(step, len(x)), len(encoder))
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        yield start, torch.addmm(bias, rows, encoder.T, out=out[: len(rows)])


def grouped_topk(hidden_pre: Float[Tensor, "n width"], k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest entries of each row and their columns, in no order.

    The k largest lie in the k groups with the largest maxima. Those groups are found in the same
    way, and only their entries are compared, so few are read twice.

    Returns:
        (values, columns), both (n, k).
    """
    n, width = hidden_pre.shape
    if width <= max(DIRECT_WIDTH, 2 * GROUP_SIZE * k) or width % GROUP_SIZE:
        return hidden_pre.topk(k, dim=1, sorted=False)
    # Entries of a group lie width / GROUP_SIZE apart, so that the maxima are over whole rows.
    groups = hidden_pre.view(n, GROUP_SIZE, width // GROUP_SIZE)
    best = grouped_topk(groups.amax(1), k)[1]
    columns = (best[:, None] + _strides(width, hidden_pre.device)).view(n, -1)
    top = hidden_pre.gather(1, columns).topk(k, dim=1, sorted=False)
    return top.values, columns.gather(1, top.indices)


def _strides(width: int, device) -> Int[Tensor, "GROUP_SIZE 1"]:
    return torch.arange(0, width, width // GROUP_SIZE, device=device)[:, None]


def select_topk(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    k: int,
) -> ActiveSet:
    """Select each vector's k largest pre-activations."""
    tops = [grouped_topk(block, k) for _, block in hidden_pre_blocks(x, encoder, bias)]
    values, latents = (torch.cat(t).flatten() for t in zip(*tops, strict=True))
    bags = torch.arange(len(x), device=x.device, dtype=torch.int32).repeat_interleave(k)
    return ActiveSet(values, latents, bags, n=len(x), d_sae=len(encoder))


def select_above(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    threshold: float | Float[Tensor, " d_sae"] = 0.0,
) -> ActiveSet | DenseActiveSet:
    """Select all pre-activations above a threshold, one for all latents or one for each."""
    offset = bias - threshold
    max_active = int(DENSE_FRACTION * len(x) * len(encoder))
    parts, n_active = [], 0
    for start, block in hidden_pre_blocks(x, encoder, offset):
        rows, latents = _positive(block)
        n_active += len(rows)
        if n_active > max_active:
            above = torch.addmm(offset, x, encoder.T)
            return DenseActiveSet((above > 0).to(x.dtype))
        parts.append((block[rows, latents], latents, rows + start))
    values, latents, bags = (torch.cat(t) for t in zip(*parts, strict=True))
    # The blocks held x W + b − threshold; pre-activations are without the threshold.
    subtracted = threshold[latents] if isinstance(threshold, Tensor) else threshold
    return ActiveSet(values + subtracted, latents, bags, n=len(x), d_sae=len(encoder))


def _positive(block: Float[Tensor, "n width"]) -> tuple[Tensor, Tensor]:
    """Find rows and columns of the positive entries, by row; groups without any are skipped."""
    n, width = block.shape
    if width % GROUP_SIZE:
        return (block > 0).nonzero().unbind(1)
    group_max = block.view(n, GROUP_SIZE, width // GROUP_SIZE).amax(1)
    rows, groups = (group_max > 0).nonzero().unbind(1)
    columns = groups[:, None] + _strides(width, block.device)[:, 0]  # (hits, GROUP_SIZE)
    hit, entry = (block[rows[:, None], columns] > 0).nonzero().unbind(1)
    return rows[hit], columns[hit, entry]


def select_batch_topk(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    k: int,
    guess: float,
) -> tuple[ActiveSet, float]:
    """Select the k · n largest pre-activations of the batch.

    Args:
        x: Vectors.
        encoder: The encoder.
        bias: Its bias.
        k: Average number of active latents per vector.
        guess: A threshold that lets through more than that, but not many times more: the last
            batch's, lowered; 0 for the first batch.

    Returns:
        The active set, and the smallest selected pre-activation.
    """
    n_wanted = k * len(x)
    active: Any = select_above(x, encoder, bias, guess) if guess > 0 else None
    if active is None or active.dense or len(active.hidden_pre) < n_wanted:
        # Each row's few largest hold k · n that are close to the batch's; what exceeds the least
        # of these holds the batch's.
        candidates = select_topk(x, encoder, bias, min(CANDIDATES_PER_K * k, len(encoder)))
        least = float(candidates.hidden_pre.topk(n_wanted, sorted=False).values.min())
        active = select_above(x, encoder, bias, least - 1e-6 * abs(least))
        if active.dense or len(active.hidden_pre) < n_wanted:
            active = candidates
    if len(active.hidden_pre) > n_wanted:
        largest = active.hidden_pre.topk(n_wanted, sorted=False).indices.sort().values
        pairs = active.hidden_pre[largest], active.latents[largest], active.bags[largest]
        active = ActiveSet(*pairs, n=active.n, d_sae=active.d_sae)
    return active, float(active.hidden_pre.min())
