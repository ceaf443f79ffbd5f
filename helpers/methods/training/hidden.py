"""Activations with gradients, from a forward pass that ends after the last one needed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.sites import site_value
from helpers.models import architecture_of
from helpers.training.examples import Batch, Example, in_batches


def activations_with_grad(
    model: LanguageModel, batch: Batch, wanted: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], Float[Tensor, "b t width"]]:
    """Activations at (layer, site), differentiable where gradients are on.

    Args:
        model: Any model of a known family.
        batch: Sequences.
        wanted: Layers with sites, in the order in which they are computed.
    """
    arch = architecture_of(model)
    with model.trace(batch.ids) as tracer:
        found = {}.save()
        for layer, site in wanted:
            found[layer, site] = site_value(arch.layers[layer], site, len(batch.ids)).clone()
        tracer.stop()
    return found


def positions(batch: Batch, *, since: bool) -> tuple[Tensor, Tensor]:
    """Rows and columns of all tokens but the first; with `since`, from the subject on.

    The first token of a text is a state of its own in most models, much larger than any other.
    """
    at = torch.arange(batch.ids.shape[1])
    first = batch.since.clamp_min(1) if since else torch.ones_like(batch.since)
    inside = (at >= first[:, None]) & (at < batch.length[:, None])
    return inside.nonzero(as_tuple=True)


@torch.no_grad()
def reference_states(
    model: LanguageModel, examples: Sequence[Example], wanted: Sequence[tuple[int, str]]
) -> list[list[Float[Tensor, "t width"]]]:
    """For each example its activations at (layer, site), of all tokens but the first."""
    found: list = [None] * len(examples)
    for batch in in_batches(examples):
        states = activations_with_grad(model, batch, wanted)
        for row, i in enumerate(batch.index.tolist()):
            found[i] = [states[key][row, 1 : len(examples[i].ids)].float() for key in wanted]
    return found
