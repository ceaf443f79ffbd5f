"""Deleted neurons: the edit that zeroes them, and as many others drawn at random."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.methods.change import Change
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import MLPArchitecture, architecture_of, torch_module


def random_like(
    model: LanguageModel, chosen: Sequence[tuple[int, int]], *, seed: int = 0
) -> list[tuple[int, int]]:
    """Draw as many neurons of the same layers, among the others.

    Args:
        model: Any model of a known family.
        chosen: (layer, neuron) pairs.
        seed: Draws the neurons.
    """
    rng, d_mlp = np.random.default_rng(seed), architecture_of(model).d_mlp
    drawn = []
    for layer in sorted({layer for layer, _ in chosen}):
        excluded = {neuron for chosen_layer, neuron in chosen if chosen_layer == layer}
        others = [i for i in range(d_mlp) if i not in excluded]
        drawn += [(layer, int(i)) for i in rng.permutation(others)[: len(excluded)]]
    return drawn


def deletion(model: LanguageModel, chosen: Sequence[tuple[int, int]]) -> WeightEdit:
    """Return the edit that zeroes the rows and columns of neurons.

    Its rank in each matrix is the number of neurons deleted there. Of so many neurons in a layer
    that two factors would be larger than the matrix, the change is dense.

    Args:
        model: Any model of a known family.
        chosen: (layer, neuron) pairs.

    Raises:
        UserError: There is no such layer or neuron.
    """
    arch = architecture_of(model)
    chosen = [(arch.check_layer(layer), arch.check_neuron(i)) for layer, i in chosen]
    changes = {}
    for layer in sorted({layer for layer, _ in chosen}):
        mlp = arch.layers[layer].mlp
        index = sorted({neuron for chosen_layer, neuron in chosen if chosen_layer == layer})
        for name, keys in ((mlp.in_name, mlp.W_in()), (mlp.gate_name, mlp.W_gate())):
            if name and keys is not None:
                changes[name] = _zeroing(mlp, keys, index)
        changes[mlp.out_name] = _zeroing(mlp, mlp.W_out().T, index, columns=True)
    return WeightEdit.of(torch_module(model), changes)


def _zeroing(
    mlp: MLPArchitecture,
    rows: Float[Tensor, "d_mlp d_model"],
    index: Sequence[int],
    *,
    columns: bool = False,
) -> Change:
    """Return the change that zeroes rows of a matrix, or columns if it is given transposed."""
    d_mlp, d_model = rows.shape
    one_hot = torch.eye(d_mlp)[index].T  # (d_mlp, n), times minus the rows themselves
    if len(index) * (d_mlp + d_model) < d_mlp * d_model:
        if columns:
            return low_rank_change(mlp, -rows[index].T, one_hot.T)
        return low_rank_change(mlp, one_hot, -rows[index])
    change = torch.zeros(d_mlp, d_model)
    change[index] = -rows[index].detach().float().cpu()
    # stored (outputs, inputs), or the other way round
    return Change(dense=change.T.contiguous() if columns != mlp.transposed else change)
