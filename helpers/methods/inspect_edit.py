"""Summaries of a weight edit: its size by layer, and how much of it a smaller form keeps."""

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.methods.edit import Edit
from helpers.models import architecture_of, torch_module


def change_by_layer(model: LanguageModel, edit: Edit) -> pd.DataFrame:
    """Measure the change of each matrix.

    Args:
        model: The model that the edit was made for.
        edit: A weight edit; for an intervention there are no rows.

    Returns:
        One row a changed tensor: layer (−1 outside the blocks), matrix (the layer's name in its
        block), norm (Frobenius), relative (to the tensor's own norm), share (of the whole change's
        squared norm).
    """
    if not edit.changes_weights:
        return pd.DataFrame(columns=["layer", "matrix", "norm", "relative", "share"])
    module = torch_module(model)
    paths = {id(m): f"{name}." for name, m in module.named_modules()}
    blocks = [paths[id(layer.block._module)] for layer in architecture_of(model).layers]
    rows = []
    for measured in edit.delta.measures(module):
        name = measured["tensor"].removesuffix(".weight")
        layer = next((i for i, b in enumerate(blocks) if name.startswith(b)), -1)
        rows.append(
            {
                "layer": layer,
                "matrix": name.rpartition(".")[2],
                "norm": measured["norm"],
                "relative": measured["relative"],
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(share=table["norm"] ** 2 / (table["norm"] ** 2).sum())


def explained_norm(whole: Edit, smaller: Edit) -> float:
    """Compute 1 − ‖ΔW − ΔW′‖² / ‖ΔW‖² over all tensors: 1 if a smaller form loses nothing.

    Args:
        whole: A weight edit, ΔW.
        smaller: A smaller form of it, such as `whole.compressed(rank)`, ΔW′.

    Raises:
        UserError: One of them is an intervention, or they change different tensors.
    """
    weights = whole.changes_weights and smaller.changes_weights
    if not weights or whole.delta.changes.keys() != smaller.delta.changes.keys():
        raise UserError("Only two changes of the same weights can be compared.")
    lost = total = 0.0
    for name, change in whole.delta.changes.items():
        matrix = change.matrix().float()
        lost += float((matrix - smaller.delta.changes[name].matrix().float()).square().sum())
        total += float(matrix.square().sum())
    return 1 - lost / total
