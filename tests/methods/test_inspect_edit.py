"""Where a change of weights sits, what a smaller one keeps, and which latents it reads."""

import pytest
import torch
from small_edits import edit_of

from helpers.errors import UserError
from helpers.methods import Change, Edit, HookIntervention, WeightEdit
from helpers.methods.inspect_edit import change_by_layer, fidelity, latent_overlap
from helpers.models import architecture_of
from helpers.sae import SAEConfig, build


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
        fidelity(asked, asked)


def test_fidelity_is_what_the_largest_singular_values_hold(tiny_model):
    model = tiny_model()
    name = architecture_of(model).layers[1].mlp.out_name
    shape = model._module.get_parameter(name).shape
    u, v = (torch.linalg.qr(torch.randn(n, 3))[0] for n in shape)
    whole = made(model, {name: Change(dense=u @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ v.T)})
    assert fidelity(whole, whole) == pytest.approx(1.0)
    assert fidelity(whole, whole.compressed(2, torch.float32)) == pytest.approx(13 / 14, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", ["mlp_in", "mlp"])
def test_a_change_along_a_latent_overlaps_with_it_alone(tiny_model, family, site):
    model = tiny_model(family)
    mlp = architecture_of(model).layers[1].mlp
    sae = build(SAEConfig("topk", 16, 12, k=4, site=site, layer=1)).requires_grad_(False)
    d = sae.W_dec[5]
    other = torch.randn(architecture_of(model).d_mlp)
    matrix = torch.outer(other, d) if site == "mlp_in" else torch.outer(d, other)
    name = mlp.in_name if site == "mlp_in" else mlp.out_name
    edit = made(model, {name: Change(dense=matrix.T if mlp.transposed else matrix)})
    table = latent_overlap(model, edit, sae)
    assert table.loc[0, "latent"] == 5
    assert table.loc[0, "share"] == pytest.approx(1.0, abs=1e-5)
    expected = float(sae.W_dec[7] @ d) ** 2
    assert float(table.set_index("latent")["share"][7]) == pytest.approx(expected, abs=1e-5)
    elsewhere = build(sae.cfg.replace(layer=2))
    with pytest.raises(UserError, match=r"\(layer 2\) was changed"):
        latent_overlap(model, edit, elsewhere)
