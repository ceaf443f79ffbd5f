"""Where in a model a change of weights sits, how much of it a smaller one keeps, what it reads."""

import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.methods.edit import Edit
from helpers.models import anatomy


def change_by_layer(model: LanguageModel, unlearning: Edit) -> pd.DataFrame:
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


def fidelity(whole: Edit, smaller: Edit) -> float:
    """1 − ‖ΔW − ΔW′‖² / ‖ΔW‖² over all tensors: 1 when a smaller form of a change loses nothing.

    Raises:
        UserError: One of them is an intervention, or they change different tensors.
    """
    if not (whole.removes and smaller.removes) or whole.delta.changes.keys() != (
        smaller.delta.changes.keys()
    ):
        raise UserError("Only two changes of the same weights can be compared.")
    lost = total = 0.0
    for name, change in whole.delta.changes.items():
        matrix = change.matrix().float()
        lost += float((matrix - smaller.delta.changes[name].matrix().float()).square().sum())
        total += float(matrix.square().sum())
    return 1 - lost / total


@torch.no_grad()
def latent_overlap(model: LanguageModel, unlearning: Edit, sae) -> pd.DataFrame:
    """How much of a change reads (or writes) each latent's direction.

    For an SAE of `mlp_in` the share ‖ΔW d_f‖² / ‖ΔW‖² over W_in and the gate of its layer, for one
    of `mlp` ‖d_fᵀ ΔW‖² / ‖ΔW‖² of W_out; d_f is the latent's decoder row, of length 1. Directions
    overlap, so shares may sum to more than 1; a change without preference has 1/d_model for each.

    Args:
        model: The model that it was made for.
        unlearning: A change of weights.
        sae: An SAE of the site `mlp_in` or `mlp`.

    Returns:
        One row a latent, the largest share first: latent, share.

    Raises:
        UserError: The SAE is of another site, or nothing in its layer was changed there.
    """
    if sae.cfg.site not in ("mlp_in", "mlp"):
        raise UserError(f"The SAE is of the site '{sae.cfg.site}': give one of mlp_in or mlp.")
    mlp = anatomy(model).layers[sae.cfg.layer].mlp
    reads = sae.cfg.site == "mlp_in"
    names = [n for n in ((mlp.gate_name, mlp.in_name) if reads else (mlp.out_name,)) if n]
    changes = [unlearning.delta.changes[n] for n in names if n in unlearning.delta.changes]
    if not changes:
        raise UserError(f"Nothing that meets this SAE (layer {sae.cfg.layer}) was changed.")
    rows = []
    for change in changes:
        matrix = change.matrix().float()
        matrix = matrix.T if mlp.transposed else matrix  # (out, in)
        rows.append(matrix if reads else matrix.T)
    stacked = torch.cat(rows)  # (n, d_model)
    share = (stacked @ sae.W_dec.float().T).square().sum(0) / stacked.square().sum()
    table = pd.DataFrame({"latent": range(len(share)), "share": share.numpy()})
    return table.sort_values("share", ascending=False, ignore_index=True)
