"""Forward passes: batches of like length, and groups that share a beginning."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

BATCH_TOKENS = 512  # a batch of this many tokens keeps two cores busy and its states in cache
PASS = 32  # a pass takes so much longer, in tokens: it reads all the weights
SAVED = 96  # tokens that a common beginning has to save for its group to be run by itself


def bucket_by_length(
    lengths: Sequence[int], *, budget: int = BATCH_TOKENS, passes: int = 1
) -> Iterator[list[int]]:
    """Indices in batches of like length, each of at most `budget` tokens with its padding.

    Of all ways to cut the sorted sequences the one with the fewest tokens, padding included, where
    a batch by itself counts as `PASS` tokens more for each of its passes through the model.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    cost, cut = [0], [0]  # of the first so many: the least cost, and where their last batch begins
    for end in range(1, len(order) + 1):
        width, starts = lengths[order[end - 1]], []
        for start in range(end - 1, -1, -1):
            tokens = (end - start) * width
            if starts and tokens > budget:
                break
            starts.append((cost[start] + tokens + PASS * passes, start))
        least, start = min(starts)
        cost.append(least)
        cut.append(start)
    batches, end = [], len(order)
    while end:
        batches.append(order[cut[end] : end])
        end = cut[end]
    yield from reversed(batches)


def right_padded(rows: Sequence[tuple[int, ...]]) -> Int[Tensor, "b t"]:
    """Token sequences as one batch, shorter ones filled up with zeros."""
    width = max(map(len, rows))
    return torch.tensor([row + (0,) * (width - len(row)) for row in rows])


def prefix_groups(sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, list[int]]]:
    """Groups of sequences with the length of the beginning that they share.

    In alphabetical order sequences with a common beginning stand together. Of all ways to cut that
    order into groups the one with the fewest tokens to run, where a group by itself counts as
    `SAVED` tokens more: it takes two passes of its own. Every sequence keeps at least one token of
    its own.

    Args:
        sequences: Distinct token sequences.

    Yields:
        (shared tokens, indices); a group of its own, with 0 shared tokens, holds all that share
        too little.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    lengths = [len(sequences[i]) for i in order]
    alike = [0, *(common_prefix_length(sequences[a], sequences[b]) for a, b in pairwise(order))]
    best = [(0, 0, 0)]  # of the first so many: least cost, where their last group begins, shared
    for end in range(1, len(order) + 1):
        tokens, shared = lengths[end - 1], lengths[end - 1] - 1
        least = (best[-1][0] + tokens, end - 1, 0)
        for start in range(end - 2, -1, -1):
            shared = min(shared, alike[start + 1], lengths[start] - 1)
            if not shared:
                break
            tokens += lengths[start]
            cost = best[start][0] + tokens - (end - start - 1) * shared + SAVED
            least = min(least, (cost, start, shared))
        best.append(least)
    groups, rest, end = [], [], len(order)
    while end:
        _, start, shared = best[end]
        if shared:
            groups.append((shared, order[start:end]))
        else:
            rest += order[start:end]
        end = start
    yield from reversed(groups)
    if rest:
        yield 0, rest


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the first on."""
    same = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(same, min(len(a), len(b)))


class PrefixState(Protocol):
    """A beginning that was run, and whatever its reader needs to go on after it."""

    ids: tuple[int, ...]
    states: Float[Tensor, "t d_model"]


class Reader(Protocol):
    """Runs what `run_batched` asks for; states are those after the final norm."""

    def beginning(self, ids: tuple[int, ...]) -> PrefixState:
        """Run what several sequences begin with."""

    def following(
        self, rows: Sequence[tuple[int, ...]], after: PrefixState | None
    ) -> Float[Tensor, "b t d_model"]:
        """States of rows, padded on the right, that follow a beginning, or none."""


def run_batched(
    sequences: Sequence[tuple[int, ...]], reader: Reader, *, whole: bool = False
) -> Iterator[tuple[list[int], PrefixState | None, Float[Tensor, "b t d_model"]]]:
    """Run every sequence, those that begin alike after one pass over their beginning.

    Args:
        sequences: Distinct token ids.
        reader: Runs them.
        whole: Each from its start, whatever it shares with others.

    Yields:
        (indices of the sequences of a batch, what they follow, states of what follows).
    """
    groups = [(0, list(range(len(sequences))))] if whole else prefix_groups(sequences)
    for shared, group in groups:
        head = reader.beginning(sequences[group[0]][:shared]) if shared else None
        for batch in bucket_by_length([len(sequences[i]) - shared for i in group]):
            members = [group[k] for k in batch]
            yield members, head, reader.following([sequences[i][shared:] for i in members], head)
