"""Second moments of activations: how much a set of texts uses every direction of a site.

A closed-form edit ΔW changes the output on a text by ‖ΔW k‖² summed over its keys k, that is by
tr(ΔW C ΔWᵀ) with C = Σ k kᵀ.
"""

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.activations import activation_batches, select_positions
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.forward.sites import check_sites
from helpers.models import architecture_of


def second_moments(
    model: LanguageModel,
    sequences: Iterable[tuple[Sequence[int], Sequence[int] | None]],
    *,
    layers: Sequence[int],
    site: str = "neurons",
) -> tuple[dict[int, Float[Tensor, "width width"]], int]:
    """Return Σ k kᵀ over chosen positions: products in float32, sums in float64.

    Args:
        model: Any model of a known family.
        sequences: (token ids, positions that count; None for all).
        layers: Layers that are read.
        site: One of `helpers.forward.sites.SITES`; `neurons` are the keys of W_out.

    Returns:
        Layer → sum, and the number of keys.

    Raises:
        UserError: There is no such site or layer.
    """
    [site] = check_sites([site])
    arch = architecture_of(model)
    keys = [(site, layer) for layer in sorted({arch.check_layer(i) for i in layers})]
    selections = [select_positions(ids, positions) for ids, positions in sequences]
    sums: dict[int, Tensor] = {}
    count = 0
    for _, batch in activation_batches(model, selections, keys, max_tokens=LARGE_BATCH_TOKENS):
        for (_, layer), rows in batch.items():
            product = (rows.T @ rows).double()
            sums[layer] = sums[layer].add_(product) if layer in sums else product
        count += len(rows)
    return sums, count
