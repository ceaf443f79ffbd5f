"""Plan forward passes: batches of like length, and groups that share a beginning."""

from collections.abc import Iterator, Sequence

BATCH_TOKENS = 512  # a batch of this many tokens keeps two cores busy and its states in cache
PASS = 16  # a pass takes so much longer, in tokens: it reads all the weights
SAVED = 64  # tokens that a common beginning has to save for its group to be run by itself


def length_batches(
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


def prefix_groups(sequences: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, list[int]]]:
    """Groups of sequences with the length of the beginning that they share.

    In alphabetical order sequences with a common beginning stand together; a group takes the next
    one as long as the tokens saved, (members − 1) · shared, do not become fewer. A group that saves
    less than `SAVED` is not worth the two passes of its own. Every sequence keeps at least one
    token of its own.

    Args:
        sequences: Distinct token sequences, none of them the beginning of another.

    Yields:
        (shared tokens, indices); a group of its own, with 0 shared tokens, holds all that share
        too little.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    rest: list[int] = []
    group: list[int] = []
    shared = 0
    for i in order:
        if group:
            common = _common(sequences[group[0]], sequences[i], limit=shared)
            if common and len(group) * common >= (len(group) - 1) * shared:
                group.append(i)
                shared = common
                continue
            yield from _closed(group, shared, rest)
        group, shared = [i], len(sequences[i]) - 1
    if group:
        yield from _closed(group, shared, rest)
    if rest:
        yield 0, rest


def _closed(group: list[int], shared: int, rest: list[int]) -> Iterator[tuple[int, list[int]]]:
    if (len(group) - 1) * shared >= SAVED:
        yield shared, group
    else:
        rest += group


def _common(a: tuple[int, ...], b: tuple[int, ...], *, limit: int) -> int:
    """Length of the common beginning of `a` and `b`, at most `limit` and less than `b`'s length."""
    limit = min(limit, len(b) - 1)
    return next((k for k in range(limit) if a[k] != b[k]), limit)
