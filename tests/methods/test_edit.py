"""Edits of weights: what they do, that they are undone bit by bit, and that they travel."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_edits import CHOSEN, edit_of
from tiny_models import FAMILIES, KNOWN
from transformers import AutoModelForCausalLM

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import input_text
from helpers.forward.scoring import answer_probability
from helpers.io.files import read_tensors, write_tensors
from helpers.io.hashing import content_hash
from helpers.methods import (
    METHODS,
    Change,
    Edit,
    WeightEdit,
    active_edits,
    base_model,
    load_unlearning,
    unlearn,
)
from helpers.methods.change import tensors_hash
from helpers.methods.deleted_neurons import deletion, random_like
from helpers.methods.registry import Hyperparameters, Method, methods_that_take
from helpers.methods.surgery.neurons import rank_neurons
from helpers.models import architecture_of, model_hash
from helpers.sae import SAEConfig, save_sae
from helpers.sae.topk import TopKSAE
from helpers.tracing import Patch, run_patched
from helpers.tracing.patching import logits_of

FRANCE = ConceptPair("France", "Paris")
TOKENS = torch.tensor([[5, 6, 7, 8, 9]])
SMALL = {"n": 8, "n_subjects": 6, "n_tokens": 512, "max_fpr": 0.1, "layers": (0, 1)}
FOR_PAIRS = methods_that_take("pair")
BRIEF = {"steps": 2, "lr": 0.01, "n_neighbours": 4, "n_passages": 2, "n_latents": 2}  # trained


@pytest.fixture
def small(tmp_path_factory):
    """`small(method, model)` -> hyperparameters that make a method quick on a model of 3 layers."""

    def make(method: str, model) -> dict:
        numbers = SMALL | (BRIEF if METHODS[method].family in ("training", "inference") else {})
        found = {k: v for k, v in numbers.items() if k in METHODS[method].hyperparameters()}
        if METHODS[method].sae_sites:
            site = METHODS[method].sae_sites[0]
            folder = tmp_path_factory.mktemp(site)
            d, stamp = architecture_of(model).d_model, model_hash(model)
            cfg = SAEConfig("topk", d, 4 * d, k=8, site=site, layer=1, model_hash=stamp)
            save_sae(TopKSAE(cfg), folder)
            found["saes"] = (str(folder),)
        return found

    return make


def logits(module, tokens=TOKENS) -> torch.Tensor:
    with torch.inference_mode():
        return module(tokens).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", FOR_PAIRS)
def test_a_method_leaves_the_model_and_its_edit_is_undone_bit_by_bit(knowing, small, method, dtype):
    model = knowing(dtype)
    before = model_hash(model)
    edit = unlearn(model, FRANCE, method, **small(method, model))
    assert model_hash(model) == before == edit.base_hash
    assert (edit.method, edit.pair["subject"], edit.pair["target"]) == (method, "France", "Paris")
    edit.apply(model)
    edited = model_hash(model)
    assert edited != before
    edit.revert(model)
    assert model_hash(model) == before
    with edit.applied(model) as same:
        assert same is model
        assert model_hash(model) == edited
    assert model_hash(model) == before


@pytest.mark.parametrize("method", FOR_PAIRS)
def test_no_method_reads_a_held_out_prompt(knowing, small, method, monkeypatch):
    model, read = knowing(), []
    plain = type(model.tokenizer).__call__

    def recording(self, text, *rest, **how):
        read.extend([text] if isinstance(text, str) else text)
        return plain(self, text, *rest, **how)

    numbers = small(method, model)
    monkeypatch.setattr(type(model.tokenizer), "__call__", recording)
    unlearn(model, FRANCE, method, **numbers)
    text = "\n\n".join(read)
    pairs = [FRANCE, *FRANCE.same_subject(), *FRANCE.same_target()]
    pairs += [p for p in FRANCE.neighbours() if p.subject in KNOWN]
    for split, is_read in (("train", True), ("heldout", False)):
        asked = [input_text(p, model.tokenizer) for pair in pairs for p in pair.prompts(split)]
        found = [p for p in asked if p in text]
        assert bool(found) == is_read, found


@pytest.mark.parametrize("method", FOR_PAIRS)
def test_the_same_seed_makes_the_same_edit(knowing, small, method):
    model = knowing()
    numbers = small(method, model)
    first, second = (unlearn(model, FRANCE, method, seed=3, **numbers) for _ in range(2))
    one, two = first.delta.tensors(), second.delta.tensors()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (first.seed, first.hyperparameters) == (
        3,
        METHODS[method].hyperparameters() | numbers,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_deletion_is_zeroing_rows_and_columns_by_hand(tiny_model, family):
    model, by_hand = tiny_model(family), tiny_model(family)
    with edit_of(model).applied(model), torch.no_grad():
        for layer, neuron in CHOSEN:
            mlp = architecture_of(by_hand).layers[layer].mlp
            mlp.W_in()[neuron] = 0
            mlp.W_out()[:, neuron] = 0
            if mlp.W_gate() is not None:
                mlp.W_gate()[neuron] = 0
        wanted, got = by_hand._module.state_dict(), model._module.state_dict()
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_layers_counted_from_the_end_are_the_same_layers(tiny_model):
    model = tiny_model()
    counted = deletion(model, [(-3, 3), (-1, 5), (2, 1), (2, 17)]).tensors()
    plain = deletion(model, CHOSEN).tensors()
    assert counted.keys() == plain.keys()
    assert all(torch.equal(counted[name], plain[name]) for name in plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_deletion_equals_the_intervention(tiny_model, family):
    """Neurons silenced by nnsight and neurons deleted from the weights are the same edit."""
    model = tiny_model(family)
    ids = TOKENS[0].tolist()
    before = cache_activations(model, [ids], sites=["neurons"], positions="all")
    for layer in {layer for layer, _ in CHOSEN}:
        neurons = [i for at, i in CHOSEN if at == layer]
        silent = before["neurons", layer].clone()
        silent[:, neurons] = 0
        state = run_patched(model, ids, [[Patch("neurons", layer, range(len(ids)), silent)]])
        with edit_of(model, [(layer, i) for i in neurons]).applied(model):
            edited = logits(model._module)[0, -1]
        assert torch.allclose(logits_of(model, state)[0], edited, atol=1e-5)


def test_edits_are_applied_once_and_reverted_in_any_order(tiny_model):
    model, other = tiny_model(), tiny_model()
    first, second = edit_of(model, CHOSEN[:1]), edit_of(model, CHOSEN[1:])
    before = model_hash(model)
    with pytest.raises(UserError, match="is not applied to this model"):
        first.revert(model)
    first.apply(model)
    with pytest.raises(UserError, match="is applied already: revert it first"):
        first.apply(model)
    with pytest.raises(UserError, match="is not applied to this model"):
        first.revert(other)
    second.apply(model)
    assert active_edits(model) == [first, second]
    assert active_edits(other) == []
    first.revert(model)
    assert active_edits(model) == [second]
    second.revert(model)
    assert model_hash(model) == before
    assert active_edits(model) == []


def test_edits_of_the_same_tensors_do_not_stack_silently(tiny_model):
    model = tiny_model()
    first, second = edit_of(model), edit_of(model, [(0, 4)])
    with first.applied(model), pytest.raises(UserError, match="made for other weights"):
        second.apply(model)


def test_an_edit_is_reverted_when_the_block_fails(tiny_model):
    model = tiny_model()
    before = model_hash(model)
    with pytest.raises(ZeroDivisionError), edit_of(model).applied(model):
        raise ZeroDivisionError
    assert model_hash(model) == before


def test_the_original_is_there_for_a_while_under_any_edits(tiny_model):
    model = tiny_model()
    before = model_hash(model)
    first = edit_of(model, CHOSEN[:1])
    with first.applied(model):
        second = edit_of(model, [(0, 4), *CHOSEN[1:]])  # on top of the first, in its tensors
        with second.applied(model):
            edited = model_hash(model)
            with base_model(model):
                assert model_hash(model) == before
            assert model_hash(model) == edited
    assert model_hash(model) == before
    with base_model(model):
        assert model_hash(model) == before


def test_a_saved_edit_comes_back_bit_by_bit(tiny_model, tmp_path):
    model = tiny_model()
    edit = edit_of(model)
    edit.save(tmp_path / "edit.safetensors")
    loaded = load_unlearning(tmp_path / "edit.safetensors")
    plain = {k: v for k, v in vars(edit).items() if k != "delta"}
    assert plain == {k: v for k, v in vars(loaded).items() if k != "delta"}
    with edit.applied(model):
        edited = model_hash(model)
    with loaded.applied(model):
        assert model_hash(model) == edited


def test_an_edit_is_refused_on_another_base(tiny_model, tmp_path):
    model = tiny_model()
    edit_of(model).save(tmp_path / "edit.safetensors")
    edit = load_unlearning(tmp_path / "edit.safetensors")
    with pytest.raises(UserError, match=r"The model has no tensor .*the edit is for another model"):
        edit.apply(tiny_model("gpt2"))
    before = model_hash(model)
    with torch.no_grad():
        architecture_of(model).layers[0].mlp.W_in()[0, 0] += 1e-3
    changed = model_hash(model)
    assert changed != before
    with pytest.raises(UserError, match="made for other weights: load the model that it was made"):
        edit.apply(model)
    assert model_hash(model) == changed


def test_an_intervention_is_refused_on_another_model(tiny_model):
    model = tiny_model()
    asking = unlearn(model, FRANCE, "in_context")
    with edit_of(model).applied(model), asking.applied(model):
        assert active_edits(model)[-1] is asking  # over an edit of the model that it was made on
    other = tiny_model()
    with torch.no_grad():
        architecture_of(other).layers[0].mlp.W_in()[0, 0] += 1e-3
    with pytest.raises(UserError, match="made on another model: make it on this one"):
        asking.apply(other)
    assert not active_edits(other)


def test_a_fact_that_the_model_does_not_know_is_told(tiny_model, knowing):
    with pytest.warns(UserWarning, match="does not know France → Paris.* little to forget"):
        unlearn(tiny_model(), FRANCE, "random_neurons")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unlearn(knowing(), ConceptPair("Kenya", "Nairobi"), "random_neurons")


def test_hyperparameters_of_any_plain_kind_are_saved(tiny_model, tmp_path):
    how = {"layers": range(2), "max_fpr": np.float64(0.1)}
    edit = replace(edit_of(tiny_model()), hyperparameters=how)
    edit.save(tmp_path / "edit.safetensors")
    saved = load_unlearning(tmp_path / "edit.safetensors").hyperparameters
    assert saved == {"layers": [0, 1], "max_fpr": 0.1}


def written(path, *, tensors=None, older=False, **metadata) -> None:
    """The patch with some of its metadata (None: left out) or tensors changed, as if saved so."""
    found, about = read_tensors(path)
    found = found if tensors is None else tensors
    about["content"] = tensors_hash(found)
    about = {k: v for k, v in (about | metadata).items() if v is not None and k != "checksum"}
    if older:
        about["format"] = "llm-unlearning/1"
    elif "checksum" not in metadata:
        about["checksum"] = content_hash(about)
    save_file({name: tensor.clone() for name, tensor in found.items()}, path, about)


LONG = "[" * 100_000
PAIRS = ("null", "3", '["a"]', "[]", '{"subject": "a", "relation": "own"}', '{"subject": ""}', "{")


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        *(
            ({name: None}, f"its '{name}' is missing")
            for name in (
                *("method", "pair", "hyperparameters", "seed", "seconds", "base_hash", "notes"),
            )
        ),
        ({"touched_hash": None}, "either 'touched_hash' or 'intervention'"),
        ({"intervention": "in_context"}, "either 'touched_hash' or 'intervention'"),
        ({"settings": "{}"}, "either 'touched_hash' or 'intervention'"),
        ({"more": "x"}, "its 'more' is not known"),
        ({"notes": "{"}, "its 'notes': Invalid JSON"),
        ({"notes": LONG}, "its 'notes': Invalid JSON: recursion limit"),
        ({"notes": "[]"}, "its 'notes': Input should be a valid dictionary"),
        ({"hyperparameters": "null"}, "its 'hyperparameters': Input should be"),
        ({"seed": "x"}, "its 'seed': Input should be a valid integer"),
        ({"seed": "9" * 5000}, "its 'seed': Unable to parse"),
        ({"seconds": "nan"}, "its 'seconds': Input should be"),
        ({"seconds": "-1"}, "its 'seconds': Input should be"),
        ({"base_hash": "abc"}, "its 'base_hash': String should match"),
        ({"touched_hash": "Z" * 16}, "its 'touched_hash': String should match"),
        ({"method": ""}, "its 'method': String should have"),
        ({"rank": "x"}, "its 'rank': "),
        ({"norm": "inf"}, "its 'norm': "),
        *(({"pair": pair}, "its 'pair") for pair in PAIRS),
    ],
)
def test_metadata_that_save_did_not_write_are_told_in_one_sentence(
    tiny_model, tmp_path, metadata, sentence, older
):
    path = tmp_path / "edit.safetensors"
    edit_of(tiny_model()).save(path)
    written(path, older=older, **metadata)
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        load_unlearning(path)
    assert re.search(r"edit.safetensors is damaged or not of this suite \(", str(error.value))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_files_of_the_older_format_are_read(tiny_model, tmp_path):
    model = tiny_model()
    path = tmp_path / "edit.safetensors"
    edit = edit_of(model)
    with edit.applied(model):
        wanted = model_hash(model)
    for left_out in ((), ("content",), ("content", "rank", "norm", "versions")):
        edit.save(path)
        written(path, older=True, **dict.fromkeys(left_out))
        loaded = load_unlearning(path)
        assert vars(loaded) | {"delta": 0} == vars(edit) | {"delta": 0}
        with loaded.applied(model):
            assert model_hash(model) == wanted
    for format_, lost in (("llm-unlearning/2", "checksum"), ("llm-unlearning/1", "")):
        edit.save(path)  # a checksum does not get lost, and an older file has none
        tensors, about = read_tensors(path)
        about["format"] = format_
        save_file(tensors, path, {k: v for k, v in about.items() if k != lost})
        with pytest.raises(UserError, match="its 'checksum' is missing, or the format has none"):
            load_unlearning(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("method", "other"), ("seed", "1"), ("notes", '{"x": 1}'), ("touched_hash", "0" * 16)],
)
def test_metadata_that_were_changed_are_told(tiny_model, tmp_path, name, value):
    path = tmp_path / "edit.safetensors"
    edit_of(tiny_model()).save(path)
    tensors, about = read_tensors(path)
    save_file(tensors, path, about | {name: value})
    with pytest.raises(UserError, match="metadata are not those written"):
        load_unlearning(path)


W, ONE = "model.layers.1.mlp.down_proj.weight", torch.ones(1, 24)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"weight": ONE}, "'weight' is no part of an edit: names end in dense, left"),
        ({".dense": ONE}, "'.dense' is no part of an edit"),
        ({f"{W}.zzz": ONE}, "zzz' is no part of an edit"),
        ({f"{W}.appended": ONE}, "appended' is no part of an edit"),
        ({f"{W}.appended9": ONE}, "appended9' is no part of an edit"),
        ({f"{W}.appendedx": ONE}, "appendedx' is no part of an edit"),
        ({f"{W}.appended-1": ONE}, "appended-1' is no part of an edit"),
        ({f"{W}.left": ONE.T}, "has one factor of two"),
        ({f"{W}.right": ONE}, "has one factor of two"),
        ({f"{W}.left": torch.ones(16, 2), f"{W}.right": ONE}, "has factors of (16, 2) and (1, 24)"),
        ({f"{W}.dense": ONE, f"{W}.left": ONE.T, f"{W}.right": ONE}, "is given twice"),
        ({f"{W}.appended0": ONE, f"{W}.appended1": ONE}, "has rows and columns appended"),
        ({f"{W}.appended1": torch.ones(16, 2)}, "that do not match"),
        ({f"{W}.dense": torch.zeros(16, 24)}, "changes no weight"),
        ({f"{W}.dense": torch.full((16, 24), torch.nan)}, f"'{W}.dense' holds numbers that are"),
        ({f"{W}.dense": torch.full((16, 24), 3e38)}, f"'{W}' holds numbers too large"),
        ({f"{W}.dense": ONE.to(torch.float8_e5m2)}, "the kind float8_e5m2"),
        ({f"{W}.dense": ONE.to(torch.complex64)}, "complex"),
        ({f"{W}.dense": ONE.to(torch.int8)}, "the kind int8"),
        ({f"{W}.dense": torch.ones(())}, "has 0 axes"),
        ({f"{W}.dense": torch.ones(0, 24)}, "holds no numbers"),
        ({}, "changes no weight"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_tensors_that_make_no_edit_are_told_when_the_file_is_read(
    tiny_model, tmp_path, tensors, sentence, older
):
    path = tmp_path / "edit.safetensors"
    edit_of(tiny_model()).save(path)
    written(path, tensors=tensors, older=older)
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        load_unlearning(path)
    assert "\n" not in str(error.value)


def test_an_edit_that_could_not_be_read_back_is_not_written(tiny_model, tmp_path):
    edit = edit_of(tiny_model())
    path = tmp_path / "edit.safetensors"
    for odd, name in (
        ({"pair": {}}, "pair.subject"),
        ({"method": ""}, "method"),
        ({"base_hash": ""}, "base_hash"),
        ({"seconds": float("nan")}, "seconds"),
    ):
        with pytest.raises(UserError, match=f"cannot be written as a patch .its '{name}'"):
            replace(edit, **odd).save(path)
    assert not path.exists()


def test_a_model_or_an_edit_that_is_not_finite_is_refused_with_the_tensors_name(
    knowing, monkeypatch
):
    model = knowing()
    name = architecture_of(model).layers[1].mlp.out_name

    def broken(model, pair, hparams, *, seed=0):
        like = model._module.get_parameter(name)
        return WeightEdit.of(model._module, {name: Change(dense=torch.full_like(like, torch.nan))})

    monkeypatch.setitem(METHODS, "broken", Method("broken", "surgery", broken, Hyperparameters))
    with pytest.raises(UserError, match=f"The edit: '{name}.dense' holds numbers that are not"):
        unlearn(model, FRANCE, "broken")
    with torch.no_grad():
        model._module.get_parameter(name)[3, 4] = torch.nan
    with pytest.raises(UserError, match=f"The model: '{name}' holds numbers that are not finite"):
        unlearn(model, FRANCE, "random_neurons")


@pytest.mark.parametrize(("dtype", "refused"), [("float16", True), ("bfloat16", False)])
def test_an_edit_that_writes_more_than_float16_has_numbers_for_is_refused(
    knowing, monkeypatch, dtype, refused
):
    model = knowing(dtype)
    name = architecture_of(model).layers[1].mlp.out_name

    def large(model, pair, hparams, *, seed=0):
        like = model._module.get_parameter(name)  # the weights fit, their sums do not
        return WeightEdit.of(model._module, {name: Change(dense=torch.full_like(like, 6e4))})

    monkeypatch.setitem(METHODS, "large", Method("large", "surgery", large, Hyperparameters))
    before = model_hash(model)
    if refused:
        with pytest.raises(UserError, match=r"\(large\) the model's answers are not finite"):
            unlearn(model, FRANCE, "large")
    else:
        unlearn(model, FRANCE, "large")
    assert model_hash(model) == before and active_edits(model) == []


@pytest.mark.parametrize(
    "method", ["tangent_kernel", pytest.param("gated_neuron", marks=pytest.mark.slow)]
)
def test_what_float16_takes_has_answers_and_the_rest_is_refused(knowing, method):
    """Whichever it is on this machine: no answer that is not finite passes as forgotten."""
    model, pair = knowing("float16"), ConceptPair("Germany", "Berlin")
    before = model_hash(model)
    try:
        edit = unlearn(model, pair, method)
    except UserError as error:
        assert "not finite" in str(error) and "load the model as float32" in str(error).lower()
    else:
        with edit.applied(model):
            assert np.isfinite(answer_probability(model, pair.prompts("train"))).all()
    assert model_hash(model) == before


def test_files_that_hold_no_edit_are_told_in_one_sentence(tiny_model, tmp_path):
    path = tmp_path / "edit.safetensors"
    with pytest.raises(UserError, match="is missing"):
        load_unlearning(path)
    edit_of(tiny_model()).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        load_unlearning(path)
    edit_of(tiny_model()).save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # one bit of a number
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged.*not those written"):
        load_unlearning(path)
    write_tensors(path, {"w": torch.ones(2)})
    with pytest.raises(UserError, match="is no unlearning of this suite"):
        load_unlearning(path)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: unlearn(m, FRANCE, "neuron"), "no method 'neuron'; did you mean neurons"),
        (lambda m: unlearn(m, FRANCE, "zzz"), "no method 'zzz'; there are .*neurons"),
        (
            lambda m: unlearn(m, FRANCE, "neurons", n_subject=3),
            "no hyperparameter 'n_subject'; did you mean",
        ),
        (
            lambda m: unlearn(m, FRANCE, "neurons", n=0, n_subjects=2),
            "n is 0: delete between 1 and 144",
        ),
        (lambda m: deletion(m, [(0, 48)]), "no neuron 48: this MLP has 0 to 47"),
        (lambda m: WeightEdit.of(m._module, {}), "changes no weight"),
        (
            lambda m: WeightEdit.of(
                m._module,
                {architecture_of(m).layers[0].mlp.in_name: Change(dense=torch.ones(2, 2))},
            ),
            r"is \(2, 2\) and the tensor is \(48, 32\): it was made for another model",
        ),
        (
            lambda m: WeightEdit.of(m._module, {"nowhere": Change(dense=torch.ones(2))}),
            "no tensor nowhere",
        ),
    ],
)
def test_bad_input_is_told_in_one_sentence(knowing, call, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        call(knowing())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_puts_the_adapter_on_with_the_same_logits(tiny_model, tiny_folder, tmp_path, family):
    from peft import PeftModel

    folder = tiny_folder(family)
    model = tiny_model(family)
    low_rank = edit_of(model)
    name = architecture_of(model).layers[1].mlp.out_name
    weight = model._module.get_parameter(name)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    dense = WeightEdit.of(model._module, {name: Change(dense=0.1 * noise)})
    for number, delta in enumerate((low_rank.delta, dense)):
        edit = Edit("neurons", {}, delta, {}, 0, 0.0, model_hash(model))
        edit.to_peft(tmp_path / str(number), model)
        base = AutoModelForCausalLM.from_pretrained(folder)
        plain = logits(base)
        adapted = PeftModel.from_pretrained(base, tmp_path / str(number))
        with edit.applied(model):
            edited = logits(model._module)
        assert not torch.allclose(edited, plain, atol=1e-3)
        assert torch.allclose(logits(adapted), edited, atol=1e-5)


def test_peft_has_no_adapter_for_a_norm(tiny_model, tmp_path):
    model = tiny_model()
    norm = next(n for n, p in model._module.named_parameters() if p.ndim == 1)
    delta = WeightEdit.of(model._module, {norm: Change(dense=torch.ones(16))})
    edit = Edit("neurons", {}, delta, {}, 0, 0.0, "")
    with pytest.raises(UserError, match=f"{norm} is no linear layer's weight"):
        edit.to_peft(tmp_path, model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_measures_are_those_of_what_was_deleted(tiny_model, family):
    model = tiny_model(family)
    rows = {row["tensor"]: row for row in edit_of(model).report(model)["tensors"]}
    mlp = architecture_of(model).layers[2].mlp
    deleted = mlp.W_out()[:, [1, 5, 17]]
    row = rows[mlp.out_name]
    assert row["rank"] == 3
    assert row["norm"] == pytest.approx(deleted.norm().item(), rel=1e-5)
    assert row["relative"] == pytest.approx((deleted.norm() / mlp.W_out().norm()).item(), rel=1e-5)
    assert rows[architecture_of(model).layers[0].mlp.in_name]["rank"] == 1
    dense = Change(dense=torch.outer(torch.arange(3.0), torch.ones(4)))
    assert dense.rank == 1
    left, right = dense.factors()
    assert torch.allclose(left @ right, dense.dense, atol=1e-6)


def test_size_counts_the_bytes_of_the_factors(tiny_model):
    edit = edit_of(tiny_model(), [(0, 3), (0, 4)])
    # rank 2 in W_in and W_gate (24 × 16) and W_out (16 × 24), float32
    assert edit.delta.size() == 3 * 2 * (24 + 16) * 4


def test_the_random_control_deletes_as_many_of_the_same_layers(tiny_model):
    drawn = random_like(tiny_model(), CHOSEN, seed=1)
    assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in CHOSEN)
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & set(CHOSEN)
    assert drawn != random_like(tiny_model(), CHOSEN, seed=2)


def test_a_planted_neuron_ranks_first(knowing):
    """A neuron that only the subject drives must come out on top of the ranking."""
    model = knowing()
    mlp = architecture_of(model).layers[0].mlp
    france = model.tokenizer("France").input_ids[0]
    direction = model._module.get_input_embeddings().weight[france]
    with torch.no_grad():
        mlp.W_gate()[7] = mlp.W_in()[7] = 20 * direction / direction.norm()
        mlp.W_out()[:, 7] *= 20 / mlp.W_out()[:, 7].norm()
    ranked = rank_neurons(model, FRANCE, n_subjects=8)
    assert tuple(ranked.loc[0, ["layer", "neuron"]]) == (0, 7)
    assert ranked.loc[0, "auroc"] > 0.9
    assert len(ranked) == 3 * 48
    assert np.all(np.diff(ranked["score"]) <= 0)


def test_a_new_method_is_one_file(tiny_folder, tmp_path):
    """The walk of CONTRIBUTING.md, in a copy of `helpers`."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    source = re.search(r"```python\n(.*?@method\(.*?)```", text, re.DOTALL)[1]
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "helpers", tmp_path / "helpers", ignore=ignore)
    (tmp_path / "helpers" / "methods" / "surgery" / "shrink.py").write_text(source)
    script = f"""
import torch, helpers
from helpers.facts import ConceptPair
from helpers.methods import METHODS, unlearn
from helpers.models import architecture_of, load_model
assert helpers.__file__.startswith({str(tmp_path)!r}), helpers.__file__
model = load_model({str(tiny_folder("llama"))!r})
edit = unlearn(model, ConceptPair("France", "Paris"), "shrink", layer=1, factor=0.25)
values = architecture_of(model).layers[1].mlp.W_out()
before = values.clone()
with edit.applied(model):
    assert torch.allclose(values, before / 4)
assert torch.equal(values, before)
print(METHODS["shrink"].family, edit.hyperparameters)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("surgery {'layer': 1, 'factor': 0.25}")
