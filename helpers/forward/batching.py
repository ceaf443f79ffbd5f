"""Batches for forward passes: sequences of similar length, and groups with a common prefix."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

BATCH_TOKENS = 512  # a batch of this many tokens keeps two cores busy and its states in cache
LARGE_BATCH_TOKENS = 1024  # for statistics of one site, whose products of matrices dominate
CALL_OVERHEAD_TOKENS = 32  # a forward pass reads all the weights: it costs so many tokens more
MIN_PREFIX_SAVING = 96  # tokens that a common prefix has to save for its group to run apart


def bucket_by_length(
    lengths: Sequence[int], *, max_tokens: int = BATCH_TOKENS, n_passes: int = 1
) -> Iterator[list[int]]:
    """Group sequences of similar length into batches.

    Of all ways to cut the sorted sequences into batches, the one with the fewest tokens is taken.
    Padding counts, and so do `CALL_OVERHEAD_TOKENS` for each pass of a batch through the model.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Largest batch, padding included; a longer sequence is a batch by itself.
        n_passes: Forward passes that each batch takes.

    Yields:
        Indices into `lengths`, shorter sequences first.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # Dynamic programming. cost[n]: least cost of the n shortest; cut[n]: start of their last batch.
    cost, cut = [0], [0]
    for end in range(1, len(order) + 1):
        width, candidates = lengths[order[end - 1]], []
        for start in range(end - 1, -1, -1):
            n_tokens = (end - start) * width
            if candidates and n_tokens > max_tokens:
                break
            candidates.append((cost[start] + n_tokens + CALL_OVERHEAD_TOKENS * n_passes, start))
        lowest_cost, start = min(candidates)
        cost.append(lowest_cost)
        cut.append(start)
    batches, end = [], len(order)
    while end:
        batches.append(order[cut[end] : end])
        end = cut[end]
    yield from reversed(batches)


def right_padded(sequences: Sequence[Sequence[int]], *, pad_id: int = 0) -> Int[Tensor, "b t"]:
    """Put token sequences into one batch, shorter ones filled up with `pad_id` on the right.

    No mask is needed: under causal attention no earlier token sees the padding.
    """
    width = max(map(len, sequences))
    return torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in sequences])


def prefix_groups(sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, list[int]]]:
    """Group sequences by a common prefix that is worth running once.

    In alphabetical order, sequences with a common prefix stand together. Of all ways to cut that
    order into groups, the one with the fewest tokens to run is taken. A group costs
    `MIN_PREFIX_SAVING` tokens more, because it takes two passes of its own. Every sequence keeps at
    least one token after the prefix.

    Args:
        sequences: Distinct token sequences.

    Yields:
        (prefix length, indices); the last group, of prefix length 0, holds all others.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    lengths = [len(sequences[i]) for i in order]
    overlap = [0, *(common_prefix_length(sequences[a], sequences[b]) for a, b in pairwise(order))]
    # Dynamic programming. best[n], for the n first: (least cost, start of their last group, prefix)
    best = [(0, 0, 0)]
    for end in range(1, len(order) + 1):
        n_tokens, shared = lengths[end - 1], lengths[end - 1] - 1
        best_cut = (best[-1][0] + n_tokens, end - 1, 0)
        for start in range(end - 2, -1, -1):
            shared = min(shared, overlap[start + 1], lengths[start] - 1)
            if not shared:
                break
            n_tokens += lengths[start]
            saved = (end - start - 1) * shared
            cost = best[start][0] + n_tokens - saved + MIN_PREFIX_SAVING
            best_cut = min(best_cut, (cost, start, shared))
        best.append(best_cut)
    groups, ungrouped, end = [], [], len(order)
    while end:
        _, start, shared = best[end]
        if shared:
            groups.append((shared, order[start:end]))
        else:
            ungrouped += order[start:end]
        end = start
    yield from reversed(groups)
    if ungrouped:
        yield 0, ungrouped


def prefix_batches(
    sequences: Sequence[tuple[int, ...]],
    *,
    split_prefixes: bool = True,
    max_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[tuple[int, ...], list[list[int]]]]:
    """Group sequences by a common prefix, and each group into batches of what follows it.

    Args:
        sequences: Token ids.
        split_prefixes: Run common prefixes once; otherwise every sequence runs from its start.
        max_tokens: Tokens of a batch, padding included.

    Yields:
        (the prefix, empty where there is none; indices of the sequences of each of its batches).
    """
    groups = prefix_groups(sequences) if split_prefixes else [(0, list(range(len(sequences))))]
    for shared, group in groups:
        lengths = [len(sequences[i]) - shared for i in group]
        batches = bucket_by_length(lengths, max_tokens=max_tokens)
        yield sequences[group[0]][:shared], [[group[k] for k in batch] for batch in batches]


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the tokens that two sequences have in common from the first on."""
    differences = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differences, min(len(a), len(b)))


class PrefixState(Protocol):
    """A prefix that was run, with whatever its runner needs to continue it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The prefix's tokens."""

    @property
    def states(self) -> Float[Tensor, "t d_model"]:
        """Its states after the final norm."""


class ForwardRunner(Protocol):
    """Runs prefixes and suffixes for `run_batched`; states are those after the final norm."""

    def run_prefix(self, ids: tuple[int, ...]) -> PrefixState:
        """Run the common prefix of several sequences."""

    def run_suffixes(
        self, suffixes: Sequence[tuple[int, ...]], prefix: Any
    ) -> Float[Tensor, "b t d_model"]:
        """Run suffixes, padded on the right, after a prefix or from the start (None).

        Args:
            suffixes: Token ids.
            prefix: The result of this runner's `run_prefix`, or None.
        """


def run_batched(
    sequences: Sequence[tuple[int, ...]], runner: ForwardRunner, *, split_prefixes: bool = True
) -> Iterator[tuple[list[int], PrefixState | None, Float[Tensor, "b t d_model"]]]:
    """Run every sequence, those with a common prefix after one pass over it.

    Args:
        sequences: Distinct token ids.
        runner: Runs prefixes and suffixes.
        split_prefixes: Run common prefixes once; otherwise every sequence runs from its start.

    Yields:
        (indices of the sequences of a batch, their prefix or None, states of their suffixes).
    """
    for ids, batches in prefix_batches(sequences, split_prefixes=split_prefixes):
        prefix = runner.run_prefix(ids) if ids else None
        for members in batches:
            suffixes = [sequences[i][len(ids) :] for i in members]
            yield members, prefix, runner.run_suffixes(suffixes, prefix)
