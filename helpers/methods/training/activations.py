"""Tokens whose activations a loss compares, and the activations of the model before training."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.activations import Key, trace_activations
from helpers.training.examples import Batch, Example, in_batches


def token_positions(batch: Batch, *, from_subject: bool) -> tuple[Tensor, Tensor]:
    """Return rows and columns of a batch's tokens, without padding and first tokens.

    The first token of a sequence is an attention sink: its activations are far larger than any
    other's (Xiao et al. 2024; Sun et al. 2024).

    Args:
        batch: Sequences.
        from_subject: Leave out the tokens before the subject too.
    """
    columns = torch.arange(batch.ids.shape[1])
    start = (
        batch.subject_start.clamp_min(1) if from_subject else torch.ones_like(batch.subject_start)
    )
    included = (columns >= start[:, None]) & (columns < batch.length[:, None])
    return included.nonzero(as_tuple=True)


@torch.no_grad()
def reference_activations(
    model: LanguageModel, examples: Sequence[Example], keys: Sequence[Key]
) -> list[list[Float[Tensor, "t width"]]]:
    """Read the activations of each example at each site, of all tokens but the first.

    Args:
        model: The model as it is now, which later activations are compared with.
        examples: Sequences.
        keys: (site, layer) in order of computation.

    Returns:
        For each example a list with one tensor a key.
    """
    by_example: list = [None] * len(examples)
    for batch in in_batches(examples):
        activations = trace_activations(model, batch.ids, keys)
        for row, i in enumerate(batch.index.tolist()):
            n_tokens = len(examples[i].ids)
            by_example[i] = [activations[key][row, 1:n_tokens].float() for key in keys]
    return by_example
