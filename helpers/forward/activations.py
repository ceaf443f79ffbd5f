"""Second moments of what the MLPs read: how ordinary text weighs every direction of a key.

A closed-form edit ΔW disturbs a text by ‖ΔW k‖² summed over its keys k, that is by tr(ΔW C ΔWᵀ)
with C = E[k kᵀ]. Some hundred thousand tokens are enough (arXiv 2506.04226), so C is computed once
for a model, layer by layer, and kept in the cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.batching import bucket_by_length
from helpers.models import architecture_of

READ_BY = {"neurons": "out_envoy", "mlp_in": "in_envoy"}
"""Site → whose input it is: the hidden activations that W_out reads, what W_in reads."""
BATCH = 1024  # tokens a forward pass


def second_moments(
    model: LanguageModel,
    sequences: Iterable[tuple[Sequence[int], Sequence[int] | None]],
    *,
    layers: Sequence[int],
    site: str = "neurons",
    budget: int = BATCH,
) -> tuple[dict[int, Float[Tensor, "width width"]], int]:
    """Σ k kᵀ over chosen positions of token sequences: products in float32, sums in float64.

    Args:
        model: Any model of a known family.
        sequences: (token ids, positions that count; None for all).
        layers: Which layers; the forward pass stops after the last.
        site: As in `key_covariance`.
        budget: Tokens a forward pass.

    Returns:
        Layer → sum, and how many keys were summed.
    """
    sequences = list(sequences)
    sums: dict[int, Tensor] = {}
    count = 0
    for keys in activation_batches(model, sequences, layers=layers, site=site, budget=budget):
        for layer, rows in keys.items():
            product = (rows.T @ rows).double()
            sums[layer] = sums[layer].add_(product) if layer in sums else product
        count += len(rows)
    return sums, count


def activation_batches(
    model: LanguageModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int] | None]],
    *,
    layers: Sequence[int],
    site: str = "neurons",
    budget: int = BATCH,
) -> Iterable[dict[int, Float[Tensor, "n width"]]]:
    """Keys at chosen positions, batch by batch (sequences sorted by length), on the CPU.

    Args and errors are those of `second_moments`; within a batch the keys stand in no fixed order.
    """
    if site not in READ_BY:
        raise UserError(f"There is no site '{site}'; choose from {', '.join(READ_BY)}.")
    arch = architecture_of(model)
    layers = sorted({arch.check_layer(i) for i in layers})
    sequences = [(_up_to(ids, at), at) for ids, at in sequences]
    for batch in bucket_by_length([len(ids) for ids, _ in sequences], budget=budget):
        width = max(len(sequences[i][0]) for i in batch)
        tokens, wanted = _padded([sequences[i] for i in batch], width)
        with torch.inference_mode(), model.trace(tokens) as tracer:
            kept = {}.save()
            for i in layers:
                value = getattr(arch.layers[i].mlp, READ_BY[site]).input
                kept[i] = value.reshape(-1, value.shape[-1])[wanted].float().cpu()
            tracer.stop()
        yield dict(kept)


def activations_by_layer(
    model: LanguageModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int] | None]],
    *,
    layers: Sequence[int],
    site: str = "neurons",
    budget: int = BATCH,
) -> Iterator[tuple[int, Float[Tensor, "n width"]]]:
    """Each layer with its keys, in the order of the sequences and of their positions.

    Args and errors are those of `second_moments`.
    """
    batches = list(activation_batches(model, sequences, layers=layers, site=site, budget=budget))
    counts = [len(ids if at is None else at) for ids, at in sequences]
    order = sorted(range(len(counts)), key=lambda i: len(_up_to(*sequences[i])))  # as they come
    starts = [0, *accumulate(counts)]
    rows = torch.tensor([r for i in order for r in range(starts[i], starts[i + 1])])
    for i in list(batches[0]):
        found = torch.cat([b.pop(i) for b in batches])
        placed = torch.empty_like(found)
        placed[rows] = found
        yield i, placed


def _up_to(ids: Sequence[int], positions: Sequence[int] | None) -> Sequence[int]:
    """The tokens that what is asked for depends on: nothing behind the last of them."""
    return ids if positions is None else ids[: max(positions, default=0) + 1]


def _padded(
    sequences: Sequence[tuple[Sequence[int], Sequence[int] | None]], width: int
) -> tuple[Int[Tensor, "b t"], Int[Tensor, " n"]]:
    """Right-padded tokens, and which of the flattened positions are asked for."""
    tokens = torch.tensor([list(ids) + [0] * (width - len(ids)) for ids, _ in sequences])
    wanted = [
        row * width + p
        for row, (ids, positions) in enumerate(sequences)
        for p in (range(len(ids)) if positions is None else positions)
    ]
    return tokens, torch.tensor(wanted)
