"""Where in a model a change of weights sits."""

import pandas as pd
from nnsight import LanguageModel

from helpers.methods.protocol import Unlearning
from helpers.models import anatomy


def change_by_layer(model: LanguageModel, unlearning: Unlearning) -> pd.DataFrame:
    """Size of each matrix's change.

    Args:
        model: The model that it was made for.
        unlearning: A change of weights; of an intervention there are no rows.

    Returns:
        One row a changed tensor: layer (−1 outside of the blocks), matrix (the layer's name in its
        block), norm (Frobenius), relative (to the tensor's own norm), share (of the whole change's
        squared norm).
    """
    if not unlearning.removes:
        return pd.DataFrame(columns=["layer", "matrix", "norm", "relative", "share"])
    module = model._module
    paths = {id(m): f"{name}." for name, m in module.named_modules()}
    blocks = [paths[id(layer.block._module)] for layer in anatomy(model).layers]
    rows = []
    for measured in unlearning.delta.measures(module):
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
