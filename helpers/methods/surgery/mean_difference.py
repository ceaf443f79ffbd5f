"""Project one direction out of the MLP: the difference of two means."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.change import Change
from helpers.methods.fitting.contrast import contrast, input_matrices
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import Architecture, architecture_of, torch_module

FORMS = ("keys", "values")


@dataclass(frozen=True)
class MeanDifferenceHparams(Hyperparameters):
    """Hyperparameters of `mean_difference`.

    Attributes:
        form: Erase the direction from the `keys` or from the `values`.
        layers: Edited layers; by default 0 to 8 of 30, at the same relative depth in other models,
            tried on France (a development fact), not swept.
        n_subjects: Other subjects with which the subject is compared.
    """

    form: str = "keys"
    layers: Sequence[int] | None = None
    n_subjects: int = 24


@method("mean_difference", family="surgery")
def mean_difference(
    model: LanguageModel, pair: ConceptPair, hparams: MeanDifferenceHparams, *, seed: int = 0
) -> WeightEdit:
    """Set W_in ← W_in (I − d dᵀ/‖d‖²) and the gate alike, or W_out ← (I − d dᵀ/‖d‖²) W_out.

    `keys`: d is the mean input of W_in at the subject's last token, less its mean at other
    subjects'; afterwards no key depends on it. `values`: d is the mean output of W_out at the
    prompt's last token, where the target is predicted, less the mean for other subjects. Erasing a
    difference of means is the oldest linear concept erasure (Bolukbasi et al. 2016; it is the
    maximum-margin special case in Belrose et al. 2023, section 4).

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.

    Raises:
        UserError: There is no such form or layer, or nothing to compare with.
    """
    if hparams.form not in FORMS:
        raise UserError(f"There is no form '{hparams.form}'; choose from {', '.join(FORMS)}.")
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in hparams.layers or arch.relative_layers(range(9))]
    of_keys = hparams.form == "keys"
    contrasts = contrast(
        model,
        pair,
        layers=layers,
        site="mlp_in" if of_keys else "neurons",
        position="subject" if of_keys else "last",
        n_subjects=hparams.n_subjects,
        seed=seed,
    )
    changes: dict[str, Change] = {}
    for i in layers:
        difference = contrasts[i].difference()
        if of_keys:
            changes |= erase_keys(arch, i, difference)
        else:
            W_out = arch.layers[i].mlp.W_out().detach().float().cpu()
            changes |= erase_values(arch, i, W_out @ difference)
    return WeightEdit.of(torch_module(model), changes)


def erase_keys(arch: Architecture, layer: int, direction: Float[Tensor, " d_model"]) -> dict:
    """Return the changes that project a direction out of the rows of W_in and of the gate."""
    mlp = arch.layers[layer].mlp
    unit = torch.nn.functional.normalize(direction.float(), dim=0)
    return {
        name: low_rank_change(mlp, -(weight @ unit)[:, None], unit[None])
        for name, weight in input_matrices(mlp)
    }


def erase_values(arch: Architecture, layer: int, direction: Float[Tensor, " d_model"]) -> dict:
    """Return the change that projects a direction out of the columns of W_out."""
    mlp = arch.layers[layer].mlp
    unit = torch.nn.functional.normalize(direction.float(), dim=0)
    W_out = mlp.W_out().detach().float().cpu()
    return {mlp.out_name: low_rank_change(mlp, -unit[:, None], (unit @ W_out)[None])}
