"""Changes of weights: put on, taken off, saved, compressed, widened, exported."""

import contextlib
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods import (
    Change,
    Edit,
    WeightEdit,
    active_edits,
    base_model,
    load_unlearning,
    merge_edits,
    unlearn,
)
from helpers.methods import hook_intervention as interventions
from helpers.methods import weight_edit as deltas
from helpers.methods.export import save_pretrained_widened
from helpers.methods.fitting.fit_values import append_units
from helpers.methods.fitting.units import GatedUnits
from helpers.methods.snapshots import edited_tensors_hash
from helpers.models import architecture_of, load_model, model_hash
from helpers.models.hooks import active_interventions

TOKENS = torch.tensor([[2, 7, 9, 11, 30], [2, 8, 8, 40, 5]])


def logits(model):
    with torch.inference_mode():
        return model._module(TOKENS).logits


def edit(model, delta) -> Edit:
    pair = {"subject": "a", "target": "b", "relation": "own"}
    return Edit("by_hand", pair, delta, {}, 0, 0.0, model_hash(model))


def low_rank(model, layer=1, rank=3, seed=0, size=0.1):
    torch.manual_seed(seed)
    mlp = architecture_of(model).layers[layer].mlp
    rows, columns = mlp.out_module.weight.shape
    change = Change(left=size * torch.randn(rows, rank), right=torch.randn(rank, columns))
    return WeightEdit.of(model._module, {mlp.out_name: change})


def neuron(model, layer=1, seed=0):
    """A detector's two neurons with their biases, gated or not."""
    torch.manual_seed(seed)
    d = GatedUnits(torch.randn(1, 16), torch.tensor([0.1]), torch.ones(1))
    return append_units(model, {layer: d}, {layer: torch.randn(1, 16)})


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_of_one_model_add_up_to_one(tiny_model, family, tmp_path):
    model = tiny_model(family)
    name = architecture_of(model).layers[1].mlp.out_name
    plain = model._module.get_parameter(name).detach().clone()
    dense = WeightEdit.of(model._module, {name: Change(dense=0.1 * torch.randn(plain.shape))})
    edits = [edit(model, d) for d in (low_rank(model), low_rank(model, seed=1), dense)]
    total = sum(e.delta.changes[name].matrix() for e in edits)
    for some, delta in ((edits[:2], total - dense.changes[name].dense), (edits, total)):
        both = merge_edits(model, some)
        assert (both.delta.changes[name].rank == 6) == (len(some) == 2)  # factors stay factors
        both.save(tmp_path / "both.safetensors")
        with load_unlearning(tmp_path / "both.safetensors").applied(model):
            weight = model._module.get_parameter(name)
            assert torch.allclose(weight, plain + delta, atol=1e-5)
    neurons = [edit(model, neuron(model, seed=s)) for s in (0, 1)]
    with edits[0].applied(model), neurons[0].applied(model), neurons[1].applied(model):
        one_by_one = logits(model)
        together = merge_edits(model, [edits[0], *neurons])  # of the model without them
    with together.applied(model):
        assert torch.allclose(logits(model), one_by_one, atol=1e-5)
    assert together.pair == [edits[0].pair] * 3


def test_what_does_not_add_up_is_told(tiny_model):
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        architecture_of(other).layers[1].mlp.out_module.weight[0, 0] += 1
    asking = unlearn(model, ConceptPair("France", "Paris"), "in_context")
    for bad, told in (
        ([], "no edit to compose"),
        ([asking], "in_context is an intervention"),
        ([edit(other, low_rank(other))], "by by_hand was made on another model"),
    ):
        with pytest.raises(UserError, match=told):
            merge_edits(model, bad)


@pytest.mark.parametrize("family", FAMILIES)
def test_widening_adds_what_the_neuron_says_and_reverts_to_the_bit(tiny_model, family):
    model = tiny_model(family)
    before, clean = model_hash(model), logits(model)
    shapes = {n: p.shape for n, p in model._module.named_parameters()}
    u = edit(model, neuron(model))
    mlp = architecture_of(model).layers[1].mlp
    with u.applied(model):
        widened = logits(model)
        width = architecture_of(model).d_mlp + 2
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
    mlp = architecture_of(model).layers[1].mlp
    d = GatedUnits(torch.eye(16)[:1], torch.tensor([0.1]), torch.ones(1))
    x = torch.zeros(5, 16)
    x[:, 0] = 0.1 + torch.tensor([-1.0, 0.25, 0.5, 1.0, 9.0])
    wanted = torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0])
    assert torch.allclose(d.fire(mlp, x)[:, 0], wanted, atol=0.03)
    value = torch.arange(16.0)[None]
    u = edit(model, append_units(model, {1: d}, {1: value}))
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
        save_pretrained_widened(model, tmp_path / "wide")
        with pytest.raises(UserError, match="is there already"):
            save_pretrained_widened(model, tmp_path / "wide")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "wide").eval()
    with torch.inference_mode():
        torch.testing.assert_close(plain(TOKENS).logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_family_without_biases_is_refused(tiny_model, tmp_path):
    model = tiny_model("qwen2")
    widened = edit(model, neuron(model)).applied(model)
    with widened, pytest.raises(UserError, match="no biases in its MLPs"):
        save_pretrained_widened(model, tmp_path / "wide")


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
    assert active_edits(model) == [two]
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
    with base_model(model):
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
        architecture_of(other).layers[1].mlp.W_out().add_(1e-3)
    before = model_hash(other)
    with pytest.raises(UserError, match="made for other weights"):
        u.apply(other)
    narrow = tiny_model("gpt2")
    with pytest.raises(UserError, match="another model"):
        u.apply(narrow)
    assert model_hash(other) == before and active_edits(other) == []


def state(model):
    """Everything that an edit may change, and what the suite believes is on."""
    hooks = [
        (n, len(m._forward_hooks), len(m._forward_pre_hooks))
        for n, m in model._module.named_modules()
        if m._forward_hooks or m._forward_pre_hooks
    ]
    sizes = {n: (p.shape, id(p)) for n, p in model._module.named_parameters()}
    return model_hash(model), active_interventions(model._module), hooks, sizes, active_edits(model)


def all_kinds(model):
    """Edits that are applied on top of each other: low rank, neurons, a request, low rank again."""
    asking = unlearn(model, ConceptPair("France", "Paris"), "in_context")
    found = [edit(model, low_rank(model, layer=0)), edit(model, neuron(model)), asking]
    return [*found, edit(model, low_rank(model, layer=2, seed=3))]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
def test_apply_and_revert_that_fail_at_any_call_leave_everything_as_it_was(
    tiny_model, monkeypatch, error
):
    """Whatever of what they call raises, at its first call or a later one.

    Only what puts back is not made to fail: it takes no memory, and Ctrl-C waits for it.
    """
    model = tiny_model()
    edits = all_kinds(model)
    calls = {
        "copy_": torch.Tensor,
        "clone": torch.Tensor,
        "cat": torch,
        "set_parameter": deltas,
        "register_intervention": interventions,
        "register_forward_hook": torch.nn.Module,
    }

    def failing(name, owner, nth, run) -> bool:
        """Whether `run` came so far as to the nth call of `name`, and failed there."""
        plain, left = getattr(owner, name), [nth]

        def broken(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise error
            return plain(*args, **kwargs)

        before = state(model)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with contextlib.suppress(error):
                run()
        if left[0] > 0:
            return False
        assert state(model) == before, (name, nth)
        return True

    failed = set()
    for number, one in enumerate(edits):
        for name, owner in calls.items():
            for nth in (1, 2, 4):
                if failing(name, owner, nth, lambda one=one: one.apply(model)):
                    failed.add((number, name))
                else:
                    one.revert(model)
        one.apply(model)
    assert {(0, "copy_"), (1, "cat"), (1, "set_parameter"), (2, "register_intervention")} <= failed
    assert (2, "register_forward_hook") in failed
    on, failed = active_edits(model), set()
    for place in (0, 1, 2):  # the later ones stay, or come back
        for name in ("copy_", "clone", "cat"):
            for nth in (1, 2, 4):
                if failing(name, calls[name], nth, lambda place=place: on[place].revert(model)):
                    failed.add((place, name))
                else:
                    _again(model, on)
    assert {(0, "copy_"), (0, "cat"), (1, "copy_")} <= failed


def _again(model, edits):
    for one in reversed(active_edits(model)):
        one.revert(model)
    for one in edits:
        one.apply(model)


def test_applied_leaves_nothing_of_an_edit_that_fails_half_way(tiny_model, monkeypatch):
    model = tiny_model()
    torch.manual_seed(0)
    names = [architecture_of(model).layers[i].mlp.out_name for i in (0, 1)]
    changes = {n: Change(dense=torch.randn(16, 24)) for n in names}
    two, before = edit(model, WeightEdit.of(model._module, changes)), state(model)
    plain, left = torch.Tensor.copy_, [2]

    def broken(self, *args):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", broken)
        with pytest.raises(KeyboardInterrupt), two.applied(model):
            pytest.fail("the block is not entered")
    assert state(model) == before
    with two.applied(model), pytest.raises(UserError, match="applied already"):
        with two.applied(model):
            pytest.fail("the block is not entered")
        assert active_edits(model) == [two]
    assert state(model) == before


def test_ctrl_c_at_any_moment_leaves_weights_and_stack_in_agreement(tiny_model):
    model = tiny_model()
    edits = all_kinds(model)
    states = {}
    for n in range(len(edits) + 1):  # what the model is with the first n edits
        states[n] = state(model)[:3]
        if n < len(edits):
            edits[n].apply(model)
    _again(model, [])

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    theirs = signal.signal(signal.SIGINT, stop)
    try:
        for k in range(60):
            timer = threading.Timer(0.002 + 0.0007 * k, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(Stop):
                timer.start()
                while True:
                    for one in edits:
                        one.apply(model)
                    with base_model(model):
                        pass
                    for one in reversed(edits):
                        one.revert(model)
            assert state(model)[:3] == states[len(active_edits(model))]
            _again(model, [])
    finally:
        signal.signal(signal.SIGINT, theirs)


def test_an_edit_under_one_that_needs_its_neurons_is_refused_before_anything_changes(tiny_model):
    model = tiny_model()
    first = edit(model, neuron(model))
    first.apply(model)
    torch.manual_seed(0)
    name = architecture_of(model).layers[1].mlp.out_name
    wide = Change(dense=torch.randn(model._module.get_parameter(name).shape))
    second = replace(edit(model, WeightEdit.of(model._module, {name: wide})), method="second")
    second.apply(model)
    before = state(model)
    with pytest.raises(UserError, match=r"by_hand\) cannot come off while a later one \(second\)"):
        first.revert(model)
    assert state(model) == before
    second.revert(model)
    first.revert(model)
    assert active_edits(model) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_file_that_is_read_twice_is_one_edit(tiny_model, tmp_path, family):
    model = tiny_model(family)
    asking = unlearn(model, ConceptPair("France", "Paris"), "in_context")
    for made in (edit(model, neuron(model)), edit(model, low_rank(model)), asking):
        made.save(tmp_path / "made.safetensors")
        one, two = (load_unlearning(tmp_path / "made.safetensors") for _ in range(2))
        one.apply(model)
        before = state(model)
        with pytest.raises(UserError, match="is applied already: revert it first"):
            two.apply(model)
        assert state(model) == before
        with base_model(model):
            two.apply(model)  # on the original it is not
        assert state(model) == before
        if made.changes_weights:
            with pytest.raises(UserError, match="given twice"):
                merge_edits(model, [one, two])
        two.revert(model)  # the same edit comes off, whichever copy asks
        assert active_edits(model) == []


def test_inside_of_original_the_model_carries_nothing_and_interventions_come_back(tiny_model):
    model = tiny_model()
    clean = state(model)
    edits = all_kinds(model)
    for one in edits:
        one.apply(model)
    before = state(model)
    with base_model(model):
        assert state(model) == clean
        with base_model(model):
            assert state(model) == clean
        assert state(model) == clean
        with pytest.raises(UserError, match="is not applied to this model"):
            edits[0].revert(model)
        edits[1].apply(model)
        edits[2].apply(model)  # left on: comes off with the block
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), base_model(model):
        raise ZeroDivisionError
    assert state(model) == before
    edits[2].revert(model)
    edits[0].revert(model)
    assert active_edits(model) == [edits[1], edits[3]]


BIG = torch.tensor(3e38)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dense": torch.full((16, 24), torch.nan)}, "down_proj.weight.dense' holds numbers that"),
        ({"dense": torch.full((16, 24), torch.inf)}, "down_proj.weight.dense' holds numbers that"),
        ({"dense": BIG.expand(16, 24)}, "down_proj.weight' holds numbers too large to reckon"),
        ({"left": torch.full((16, 1), torch.nan), "right": torch.ones(1, 24)}, "weight.left'"),
        ({"left": torch.full((16, 1), 1e30), "right": torch.full((1, 24), 1e30)}, "too large"),
        ({"dense": torch.zeros(16, 24)}, "changes no weight"),
        ({}, "down_proj.weight' holds no numbers"),
        ({"dense": torch.zeros(0, 24)}, "down_proj.weight' holds no numbers"),
        ({"left": torch.ones(16, 1)}, "has one factor of two"),
        ({"right": torch.ones(1, 24)}, "has one factor of two"),
        ({"left": torch.ones(16, 2), "right": torch.ones(1, 24)}, r"\(16, 2\) and \(1, 24\)"),
        ({"left": torch.ones(16), "right": torch.ones(1, 24)}, r"factors of \(16,\)"),
        (
            {"dense": torch.ones(16, 24), "left": torch.ones(16, 1), "right": torch.ones(1, 24)},
            "is given twice",
        ),
        ({"dense": torch.ones(1, 16, 24)}, "has 3 axes"),
        ({"dense": torch.ones(16, 24, dtype=torch.int64)}, "numbers of the kind int64"),
        ({"dense": torch.ones(16, 24).to(torch.float8_e4m3fn)}, "the kind float8_e4m3fn"),
        ({"dense": torch.ones(16, 24, dtype=torch.complex64)}, "the kind complex64"),
        ({"dense": torch.ones(24, 16)}, r"is \(24, 16\) and the tensor is \(16, 24\)"),
        ({"appended": torch.ones(16, 1), "axis": 1}, "some neurons to matrices .* do not match"),
        ({"appended": torch.ones(16, 1), "axis": 2}, "at axis 2: append rows"),
        ({"appended": torch.ones(16, 1), "axis": -1}, "at axis -1: append rows"),
        ({"appended": torch.ones(16), "axis": 1}, "at axis 1: append rows"),
    ],
)
def test_what_is_no_edit_is_refused_when_it_is_made_and_names_the_tensor(
    tiny_model, change, sentence
):
    model = tiny_model()
    name = architecture_of(model).layers[1].mlp.out_name
    before = model_hash(model)
    with pytest.raises(UserError, match=sentence) as error:
        WeightEdit.of(model._module, {name: Change(**change)})
    assert "\n" not in str(error.value)
    assert model_hash(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_that_lack_a_row_a_bias_or_a_column_are_refused(tiny_model, family):
    model = tiny_model(family)
    whole = neuron(model)
    before = state(model)
    for name, change in whole.changes.items():
        part = {n: c for n, c in whole.changes.items() if n != name}
        try:
            u = edit(model, WeightEdit.of(model._module, part))
        except UserError as error:
            assert "do not match" in str(error)
            continue
        if name.endswith("bias") and model._module.state_dict().get(name) is None:
            continue  # a bias that is not there need not be
        with pytest.raises(UserError, match=f"has none for {name}"):
            u.apply(model)
        more = torch.cat([change.appended, change.appended], change.axis)
        with pytest.raises(UserError, match="appends 2 and 4 neurons"):
            WeightEdit.of(model._module, {**part, name: Change(appended=more, axis=change.axis)})
    width = torch.ones(1, 16)
    attention = {"up": Change(appended=width), "down": Change(appended=width.T, axis=1)}
    block = architecture_of(model).layers[0].mlp.in_name.rpartition(".mlp.")[0]
    if family == "llama":
        names = (f"{block}.self_attn.q_proj.weight", f"{block}.self_attn.o_proj.weight")
        odd = dict(zip(names, attention.values(), strict=True))
        with pytest.raises(UserError, match="no matrix that the neurons of an MLP have"):
            edit(model, WeightEdit.of(model._module, odd)).apply(model)
    assert state(model) == before


def test_an_edit_that_leaves_the_range_of_the_models_numbers_is_refused(tiny_folder, tmp_path):
    folder = str(tiny_folder("llama"))
    half, full = load_model(folder, dtype="float16"), load_model(folder)
    name = architecture_of(half).layers[1].mlp.out_name
    change = {name: Change(dense=torch.full((16, 24), 7e4))}
    with pytest.raises(UserError, match=rf"{name} holds numbers that are not finite in float16"):
        WeightEdit.of(half._module, change)
    with torch.no_grad():
        for module in (half._module, full._module):
            module.get_parameter(name).fill_(0.0)
    made = edit(full, WeightEdit.of(full._module, change))
    fits = replace(made.delta.changes[name], dense=torch.full((16, 24), 6e4))
    delta = WeightEdit({name: fits}, edited_tensors_hash(half._module, [name]))
    with edit(half, delta).applied(half):
        assert float(half._module.get_parameter(name)[0, 0]) == pytest.approx(6e4, rel=1e-3)
    before = state(half)
    wide = WeightEdit(change, edited_tensors_hash(half._module, [name]))
    with pytest.raises(UserError, match="not finite in float16: load the model as float32"):
        edit(half, wide).apply(half)
    assert state(half) == before
    large = {n: replace(c, appended=1e5 * c.appended) for n, c in neuron(full).changes.items()}
    with pytest.raises(UserError, match=r"appended.' holds numbers that are not finite"):
        WeightEdit.of(full._module, large).compressed(1, torch.float16)
    with made.applied(full):
        assert float(full._module.get_parameter(name)[0, 0]) == 7e4


def test_a_model_that_carries_an_intervention_is_not_saved_as_weights(tiny_model, tmp_path):
    model = tiny_model()
    asking = unlearn(model, ConceptPair("France", "Paris"), "in_context")
    with asking.applied(model), pytest.raises(UserError, match="carries an intervention"):
        save_pretrained_widened(model, tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
