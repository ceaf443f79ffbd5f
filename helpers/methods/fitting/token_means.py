"""Means over the tokens of examples, one for every unit of a site."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.activations import activation_batches
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.models import architecture_of
from helpers.training.examples import Example


def token_means(
    model: LanguageModel,
    examples: Sequence[Example],
    site: str,
    statistic: Callable[[Float[Tensor, "n width"], int], Tensor],
) -> dict[int, Tensor]:
    """Average a statistic of the activations over tokens, in float64, batch by batch.

    Of running text every token but the first counts, since the first has a state of its own in
    most models; of a prompt with an answer those from the one that predicts the answer.

    Args:
        model: Any model of a known family.
        examples: The text.
        site: One of `helpers.forward.sites.SITES`.
        statistic: Called with a layer's activations, one row a token, and the layer; returns one
            row a token too.

    Returns:
        Layer → mean over tokens.
    """
    keys = [(site, layer) for layer in range(architecture_of(model).n_layers)]
    selections = [(e.ids, range(max(1, e.labels_start - 1), len(e.ids))) for e in examples]
    sums: dict[int, Tensor] = {}
    for _, batch in activation_batches(model, selections, keys, max_tokens=LARGE_BATCH_TOKENS):
        for (_, layer), rows in batch.items():
            total = statistic(rows, layer).double().sum(0)
            sums[layer] = sums[layer] + total if layer in sums else total
    n_tokens = sum(len(positions) for _, positions in selections)
    return {layer: total / n_tokens for layer, total in sums.items()}
