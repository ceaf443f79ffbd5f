"""Where a change of weights sits, what a smaller one keeps, and which latents it reads."""

import pytest
import torch
from small_edits import edit_of

from helpers.errors import UserError
from helpers.methods import Change, Edit, HookIntervention, WeightEdit
from helpers.methods.inspect_edit import change_by_layer, explained_norm
from helpers.models import architecture_of


def made(model, changes) -> Edit:
    return Edit("made", {}, WeightEdit.of(model._module, changes), {}, 0, 0.0, "")


def test_a_changes_place_is_told_by_layer_and_matrix(tiny_model):
    model = tiny_model()
    table = change_by_layer(model, edit_of(model, [(0, 3), (2, 5)]))
    assert set(table["layer"]) == {0, 2}
    assert set(table["matrix"]) == {"gate_proj", "up_proj", "down_proj"}
    assert table["share"].sum() == pytest.approx(1.0)


def test_an_intervention_has_no_place(tiny_model):
    asked = Edit("made", {}, HookIntervention("in_context", {"text": "w1"}), {}, 0, 0.0, "")
    assert change_by_layer(tiny_model(), asked).empty
    with pytest.raises(UserError, match="changes of the same weights"):
        explained_norm(asked, asked)


def test_fidelity_is_what_the_largest_singular_values_hold(tiny_model):
    model = tiny_model()
    name = architecture_of(model).layers[1].mlp.out_name
    shape = model._module.get_parameter(name).shape
    u, v = (torch.linalg.qr(torch.randn(n, 3))[0] for n in shape)
    whole = made(model, {name: Change(dense=u @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ v.T)})
    assert explained_norm(whole, whole) == pytest.approx(1.0)
    assert explained_norm(whole, whole.compressed(2, torch.float32)) == pytest.approx(
        13 / 14, abs=1e-4
    )
