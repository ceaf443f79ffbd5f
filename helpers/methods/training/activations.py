"""Activations with gradients, from a forward pass that ends after the last one needed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.sites import site_value
from helpers.models import architecture_of
from helpers.training.examples import Batch, Example, in_batches

LayerSite = tuple[int, str]


def activations_with_grad(
    model: LanguageModel, batch: Batch, sites: Sequence[LayerSite]
) -> dict[LayerSite, Float[Tensor, "b t width"]]:
    """Read activations, differentiable where gradients are enabled.

    Args:
        model: Any model of a known family.
        batch: Sequences.
        sites: (layer, site) pairs, in the order in which they are computed.
    """
    arch = architecture_of(model)
    with model.trace(batch.ids) as tracer:
        activations = {}.save()  # type: ignore[attr-defined]  # nnsight adds it to objects
        for layer, site in sites:
            value = site_value(arch.layers[layer], site, len(batch.ids))
            activations[layer, site] = value.clone()
        tracer.stop()
    return activations


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
    model: LanguageModel, examples: Sequence[Example], sites: Sequence[LayerSite]
) -> list[list[Float[Tensor, "t width"]]]:
    """Read the activations of each example at each site, of all tokens but the first.

    Args:
        model: The model as it is now, which later activations are compared with.
        examples: Sequences.
        sites: (layer, site) pairs, in the order in which they are computed.

    Returns:
        For each example a list with one tensor a site.
    """
    by_example: list = [None] * len(examples)
    for batch in in_batches(examples):
        activations = activations_with_grad(model, batch, sites)
        for row, i in enumerate(batch.index.tolist()):
            n_tokens = len(examples[i].ids)
            by_example[i] = [activations[key][row, 1:n_tokens].float() for key in sites]
    return by_example
