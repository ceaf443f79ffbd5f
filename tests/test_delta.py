"""Changes of weights: put on, taken off, saved, compressed, widened, exported."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods import (
    Change,
    Unlearning,
    WeightDelta,
    applied_to,
    composed,
    load_unlearning,
    original,
    unlearn,
)
from helpers.methods.detectors import Detectors
from helpers.methods.solved import appended
from helpers.methods.widened import save_widened
from helpers.models import anatomy, model_hash
from tests.conftest import FAMILIES

TOKENS = torch.tensor([[2, 7, 9, 11, 30], [2, 8, 8, 40, 5]])


def logits(model):
    with torch.inference_mode():
        return model._module(TOKENS).logits


def edit(model, delta) -> Unlearning:
    pair = {"subject": "a", "target": "b", "relation": "own"}
    return Unlearning("by_hand", pair, delta, {}, 0, 0.0, model_hash(model))


def low_rank(model, layer=1, rank=3, seed=0, size=0.1):
    torch.manual_seed(seed)
    mlp = anatomy(model).layers[layer].mlp
    rows, columns = mlp.out_module.weight.shape
    change = Change(left=size * torch.randn(rows, rank), right=torch.randn(rank, columns))
    return WeightDelta.of(model._module, {mlp.out_name: change})


def neuron(model, layer=1, seed=0):
    """A detector's two neurons with their biases, gated or not."""
    torch.manual_seed(seed)
    d = Detectors(torch.randn(1, 16), torch.tensor([0.1]), torch.ones(1))
    return appended(model, {layer: d}, {layer: torch.randn(1, 16)})


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_of_one_model_add_up_to_one(tiny_model, family, tmp_path):
    model = tiny_model(family)
    name = anatomy(model).layers[1].mlp.out_name
    plain = model._module.get_parameter(name).detach().clone()
    dense = WeightDelta.of(model._module, {name: Change(dense=0.1 * torch.randn(plain.shape))})
    edits = [edit(model, d) for d in (low_rank(model), low_rank(model, seed=1), dense)]
    total = sum(e.delta.changes[name].matrix() for e in edits)
    for some, delta in ((edits[:2], total - dense.changes[name].dense), (edits, total)):
        both = composed(model, some)
        assert (both.delta.changes[name].rank == 6) == (len(some) == 2)  # factors stay factors
        both.save(tmp_path / "both.safetensors")
        with load_unlearning(tmp_path / "both.safetensors").applied(model):
            weight = model._module.get_parameter(name)
            assert torch.allclose(weight, plain + delta, atol=1e-5)
    neurons = [edit(model, neuron(model, seed=s)) for s in (0, 1)]
    with edits[0].applied(model), neurons[0].applied(model), neurons[1].applied(model):
        one_by_one = logits(model)
        together = composed(model, [edits[0], *neurons])  # of the model without them
    with together.applied(model):
        assert torch.allclose(logits(model), one_by_one, atol=1e-5)
    assert together.pair == [edits[0].pair] * 3


def test_what_does_not_add_up_is_told(tiny_model):
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        anatomy(other).layers[1].mlp.out_module.weight[0, 0] += 1
    asking = unlearn(model, ConceptPair("France", "Paris"), "in_context")
    for bad, told in (
        ([], "no edit to compose"),
        ([asking], "in_context is an intervention"),
        ([edit(other, low_rank(other))], "by by_hand was made on another model"),
    ):
        with pytest.raises(UserError, match=told):
            composed(model, bad)


@pytest.mark.parametrize("family", FAMILIES)
def test_widening_adds_what_the_neuron_says_and_reverts_to_the_bit(tiny_model, family):
    model = tiny_model(family)
    before, clean = model_hash(model), logits(model)
    shapes = {n: p.shape for n, p in model._module.named_parameters()}
    u = edit(model, neuron(model))
    mlp = anatomy(model).layers[1].mlp
    with u.applied(model):
        widened = logits(model)
        width = anatomy(model).d_mlp + 2
        assert mlp.W_in().shape[0] == mlp.W_out().shape[1] == width
        assert model_hash(model) != before
    assert model_hash(model) == before
    assert {n: p.shape for n, p in model._module.named_parameters()} == shapes
    assert torch.equal(logits(model), clean)
    d, value = _by_hand(u, mlp)
    with torch.inference_mode(), model.trace(TOKENS):
        x = mlp.in_envoy.input
        out = mlp.out_envoy.output
        mlp.out_envoy.output = out + d(x) @ value
        intervened = model.output.logits.save()
    assert (widened - clean).abs().max() > 1e-3
    torch.testing.assert_close(widened, intervened, rtol=1e-4, atol=1e-5)


def _by_hand(u, mlp):
    changes = u.delta.changes
    rows, values = (changes[n].appended for n in (mlp.gate_name or mlp.in_name, mlp.out_name))
    rows, values = (rows, values) if mlp.transposed else (rows.T, values.T)  # (d, 2), (2, d)
    bias = changes[(mlp.gate_name or mlp.in_name).replace("weight", "bias")].appended
    return lambda x: mlp.activation(x @ rows + bias), values


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_says_none_below_its_threshold_and_the_same_above_its_ceiling(
    tiny_model, family
):
    model = tiny_model(family)
    mlp = anatomy(model).layers[1].mlp
    d = Detectors(torch.eye(16)[:1], torch.tensor([0.1]), torch.ones(1))
    x = torch.zeros(5, 16)
    x[:, 0] = 0.1 + torch.tensor([-1.0, 0.25, 0.5, 1.0, 9.0])
    wanted = torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0])
    assert torch.allclose(d.fire(mlp, x)[:, 0], wanted, atol=0.03)
    value = torch.arange(16.0)[None]
    u = edit(model, appended(model, {1: d}, {1: value}))
    two, written = _by_hand(u, mlp)  # what the two neurons write together
    assert torch.allclose(two(x) @ written, d.fire(mlp, x) * value, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_save_and_load_keep_every_bit(tiny_model, tmp_path, family):
    model = tiny_model(family)
    for k, delta in enumerate((low_rank(model), neuron(model), low_rank(model).compressed(2))):
        u = edit(model, delta)
        u.save(tmp_path / f"{k}.safetensors")
        again = load_unlearning(tmp_path / f"{k}.safetensors")
        with u.applied(model):
            wanted = model_hash(model)
        with again.applied(model):
            assert model_hash(model) == wanted
        assert again.delta.notes == delta.notes
        assert vars(again) | {"delta": 0} == vars(u) | {"delta": 0}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_widened_model_is_a_standard_one(tiny_model, tmp_path, family):
    model = tiny_model(family)
    with edit(model, neuron(model)).applied(model):
        wanted = logits(model)
        save_widened(model, tmp_path / "wide")
        with pytest.raises(UserError, match="is there already"):
            save_widened(model, tmp_path / "wide")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "wide").eval()
    with torch.inference_mode():
        torch.testing.assert_close(plain(TOKENS).logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_family_without_biases_is_refused(tiny_model, tmp_path):
    model = tiny_model("qwen2")
    widened = edit(model, neuron(model)).applied(model)
    with widened, pytest.raises(UserError, match="no biases in its MLPs"):
        save_widened(model, tmp_path / "wide")


def test_an_earlier_edit_comes_off_and_later_ones_stay(tiny_model):
    model = tiny_model()
    clean = model_hash(model)
    one, two = edit(model, low_rank(model, layer=0)), edit(model, low_rank(model, layer=1, seed=1))
    with two.applied(model):
        only_two = model_hash(model)
    one.apply(model)
    two.apply(model)
    three = edit(model, neuron(model, layer=1))
    three.apply(model)
    three.revert(model)
    one.revert(model)
    assert model_hash(model) == only_two
    assert applied_to(model) == [two]
    with pytest.raises(UserError, match="is not applied"):
        one.revert(model)
    two.revert(model)
    assert model_hash(model) == clean


def test_original_is_the_model_without_edits_of_any_kind(tiny_model):
    model = tiny_model()
    clean = model_hash(model)
    a = edit(model, low_rank(model))
    a.apply(model)
    b = edit(model, neuron(model))
    b.apply(model)
    edited = model_hash(model)
    with original(model):
        assert model_hash(model) == clean
    assert model_hash(model) == edited
    b.revert(model)
    a.revert(model)
    assert model_hash(model) == clean


def test_compression_is_the_nearest_of_its_rank(tiny_model):
    model = tiny_model()
    delta = low_rank(model, rank=5)
    (name, change), *_ = delta.changes.items()
    small = delta.compressed(2, torch.float32).changes[name]
    s = torch.linalg.svdvals(change.matrix())
    lost = (change.matrix() - small.matrix()).norm()
    torch.testing.assert_close(lost, s[2:].norm(), rtol=1e-4, atol=1e-5)
    assert small.rank == 2
    with pytest.raises(UserError, match="at least rank 1"):
        delta.compressed(0)


def test_compression_in_half_precision_survives_small_numbers(tiny_model):
    model = tiny_model()
    delta = low_rank(model, rank=1, size=1e-7)
    (name, change), *_ = delta.changes.items()
    small = delta.compressed(1).changes[name]
    assert (small.matrix() - change.matrix()).norm() < 5e-3 * change.matrix().norm()


def test_adapter_of_a_wider_model_is_refused(tiny_model, tmp_path):
    model = tiny_model()
    with pytest.raises(UserError, match="appends neurons"):
        edit(model, neuron(model)).to_peft(tmp_path, model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapter_gives_the_edited_models_logits(tiny_model, tiny_folder, tmp_path, family):
    model = tiny_model(family)
    u = edit(model, low_rank(model))
    u.to_peft(tmp_path / "adapter", model)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder(family)).eval()
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with u.applied(model), torch.inference_mode():
        torch.testing.assert_close(adapted(TOKENS).logits, logits(model), rtol=1e-4, atol=1e-5)


def test_an_edit_of_another_model_leaves_the_model_untouched(tiny_model):
    model = tiny_model("llama")
    u = edit(model, neuron(model))
    other = tiny_model("llama")
    with torch.no_grad():
        anatomy(other).layers[1].mlp.W_out().add_(1e-3)
    before = model_hash(other)
    with pytest.raises(UserError, match="made for other weights"):
        u.apply(other)
    narrow = tiny_model("gpt2")
    with pytest.raises(UserError, match="another model"):
        u.apply(narrow)
    assert model_hash(other) == before and applied_to(other) == []
