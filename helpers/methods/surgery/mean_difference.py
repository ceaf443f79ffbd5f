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
from helpers.models import Architecture, architecture_of

FORMS = ("keys", "values")


@dataclass(frozen=True)
class MeanDifferenceHparams(Hyperparameters):
    """Hyperparameters of `mean_difference`.

    Attributes:
        form: `keys` or `values`.
        layers: Edited layers; by default 0 to 8 of 30, at the same relative depth in other models,
            tried on France (a development fact), not swept.
        n_subjects: How many other subjects.
    """

    form: str = "keys"
    layers: Sequence[int] | None = None
    n_subjects: int = 24


@method("mean_difference", family="surgery")
def mean_difference(
    model: LanguageModel, pair: ConceptPair, hparams: MeanDifferenceHparams, *, seed: int = 0
) -> WeightEdit:
    """W_in ← W_in (I − d dᵀ/‖d‖²), the gate alike; or W_out ← (I − d dᵀ/‖d‖²) W_out.

    `keys`: d is the mean of what W_in reads at the subject's last token, less its mean at other
    subjects'; no key can then read along it. `values`: d is what W_out writes at the prompt's last
    token, where the target is spoken, less what it writes there about other subjects. Erasing a
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
    layers = hparams.layers
    if hparams.form not in FORMS:
        raise UserError(f"There is no form '{hparams.form}'; choose from {', '.join(FORMS)}.")
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in layers or arch.relative_layers(range(9))]
    keys = hparams.form == "keys"
    found = contrast(
        model,
        pair,
        layers=layers,
        site="mlp_in" if keys else "neurons",
        position="subject" if keys else "last",
        n_subjects=hparams.n_subjects,
        seed=seed,
    )
    changes: dict[str, Change] = {}
    for i in layers:
        difference = found[i].difference()
        if keys:
            changes |= erase_keys(arch, i, difference)
        else:
            W_out = arch.layers[i].mlp.W_out().detach().float().cpu()
            changes |= erase_values(arch, i, W_out @ difference)
    return WeightEdit.of(model._module, changes)


def erase_keys(arch: Architecture, layer: int, direction: Float[Tensor, " d_model"]) -> dict:
    """Changes after which no row of W_in or of the gate has a component along `direction`."""
    mlp = arch.layers[layer].mlp
    unit = torch.nn.functional.normalize(direction.float(), dim=0)
    return {
        name: low_rank_change(mlp, -(weight @ unit)[:, None], unit[None])
        for name, weight in input_matrices(mlp)
    }


def erase_values(arch: Architecture, layer: int, direction: Float[Tensor, " d_model"]) -> dict:
    """The change after which no column of W_out has a component along `direction`."""
    mlp = arch.layers[layer].mlp
    unit = torch.nn.functional.normalize(direction.float(), dim=0)
    W_out = mlp.W_out().detach().float().cpu()
    return {mlp.out_name: low_rank_change(mlp, -unit[:, None], (unit @ W_out)[None])}
