"""Another checkpoint as an edit: the same numbers, the same evidence, or one clear sentence."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, WORDS, tiny_config, tiny_tokenizer
from transformers import AutoModelForCausalLM

from helpers.errors import UserError
from helpers.evaluation.battery import battery
from helpers.evaluation.edit_under_test import audit_report, load_edit_under_test
from helpers.evaluation.verdict import verdict
from helpers.facts import ConceptPair
from helpers.methods import load_unlearning, unlearn
from helpers.methods.checkpoint import edit_from_checkpoint
from helpers.models import architecture_of, load_model, model_hash

CHEAP = ["paraphrases", "logit_lens", "few_shot", "quantisation_int8"]
# The own tokenizer that transformers takes for qwen2 splits none of the tiny words.
SPLIT_FAMILIES = [f for f in FAMILIES if f != "qwen2"]
KENYA = ConceptPair("Kenya", "Nairobi")


def saved_copy(source, folder, change) -> str:
    """Save a model that plain transformers loaded and `change` changed."""
    module = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        change(module)
    module.save_pretrained(folder)
    tokenizer_files = [p for p in source.iterdir() if "token" in p.name or p.suffix == ".txt"]
    for path in tokenizer_files:
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def shift_all(module) -> None:
    """Change every parameter, embeddings and norms too: some to nearly 0, some by a lot."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p += 10.0 ** torch.randint(-9, 5, p.shape, generator=generator) * torch.randn(
            p.shape, generator=generator
        )
        p[torch.rand(p.shape, generator=generator) < 0.1] = 0
        p[torch.rand(p.shape, generator=generator) < 0.1] *= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", SPLIT_FAMILIES)
def test_the_edit_gives_the_checkpoints_very_numbers(
    tiny_folder, tmp_path, own_pair, family, dtype
):
    source = tiny_folder(family)
    checkpoint = saved_copy(source, tmp_path / "other", shift_all)
    model, other = load_model(str(source), dtype=dtype), load_model(checkpoint, dtype=dtype)
    before = model_hash(model)
    edit = edit_from_checkpoint(model, own_pair, checkpoint)
    assert model_hash(model) == before
    kinds = {change.dense.dtype for change in edit.delta.changes.values()}
    assert torch.float64 in kinds  # where a sum in float32 would round
    with edit.applied(model):
        theirs = dict(other._module.named_parameters())
        for name, parameter in model._module.named_parameters():
            assert torch.equal(parameter, theirs[name]), name
    assert model_hash(model) == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tied_embeddings_are_one_tensor(tmp_path, own_pair, family):
    config = tiny_config(family)
    config.tie_word_embeddings = True
    source = tmp_path / "source"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    checkpoint = saved_copy(
        source, tmp_path / "other", lambda m: m.get_input_embeddings().weight.add_(0.5)
    )
    model = load_model(str(source))
    edit = edit_from_checkpoint(model, own_pair, checkpoint)
    assert len(edit.delta.changes) == 1
    with edit.applied(model):
        head = model._module.get_output_embeddings().weight
        assert torch.equal(head, model._module.get_input_embeddings().weight)
        expected = load_model(checkpoint)._module.get_output_embeddings().weight
        assert torch.equal(head, expected)


def test_the_edit_is_saved_and_loaded_like_any_other(tiny_folder, tmp_path, own_pair):
    source = tiny_folder("llama")
    checkpoint = saved_copy(source, tmp_path / "other", shift_all)
    model = load_model(str(source))
    edit = edit_from_checkpoint(model, own_pair, checkpoint)
    edit.save(tmp_path / "patch.safetensors")
    loaded = load_unlearning(tmp_path / "patch.safetensors")
    assert loaded.delta.same_as(edit.delta) and loaded.base_hash == model_hash(model)


def test_a_checkpoint_gets_the_evidence_and_verdict_of_the_same_edit(knowing, taught, tmp_path):
    model = knowing()
    own = unlearn(model, KENYA, "rome")
    names = list(own.delta.changes)

    def change(module):
        for name in names:
            parameter = module.get_parameter(name)
            parameter += own.delta.changes[name].matrix()

    checkpoint = saved_copy(taught[0], tmp_path / "other", change)
    edit = load_edit_under_test(model, KENYA, checkpoint=checkpoint)
    assert list(edit.delta.changes) == names
    evidence = []
    for made in (own, edit):
        with made.applied(model):
            evidence.append(battery(model, KENYA, attacks=CHEAP, n_controls=2))
    scores = [e.table["score"].to_numpy() for e in evidence]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    labels = [verdict(e, required=CHEAP).label for e in evidence]
    assert labels[0] == labels[1]
    audits = [audit_report(model, KENYA, made)[0] for made in (own, edit)]
    assert audits[0].guess == audits[1].guess


LORA = {"r": 2, "lora_alpha": 6, "target_modules": ["down_proj", "q_proj"]}


def adapter(source, folder, **settings) -> str:
    """Save an adapter of plain peft with random factors."""
    lora = LoraConfig(**{**LORA, **settings}, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(source), lora).save_pretrained(folder)
    return str(folder)


def test_a_lora_adapter_gets_the_evidence_of_the_merged_model(knowing, taught, tmp_path):
    from peft import PeftModel

    model = knowing()
    folder = adapter(taught[0], tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(taught[0])
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    taught[1].save_pretrained(tmp_path / "merged")
    before = model_hash(model)
    edits = [
        load_edit_under_test(model, KENYA, checkpoint=c) for c in (folder, f"{tmp_path}/merged")
    ]
    assert model_hash(model) == before
    assert edits[0].delta.same_as(edits[1].delta)
    name = architecture_of(model).layers[1].mlp.out_name
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    b, a = (factors[f"{stem}.lora_{x}.weight"] for x in "BA")
    assert edits[0].delta.changes[name].matrix() == pytest.approx(6 / 2 * b @ a, abs=1e-5)
    with edits[0].applied(model):
        evidence = battery(model, KENYA, attacks=CHEAP[:2], n_controls=2)
    assert set(evidence.table["attack"]) == set(CHEAP[:2])


def test_an_adapter_of_transposed_matrices_is_merged(tiny_folder, tmp_path, own_pair):
    from peft import PeftModel

    source = tiny_folder("gpt2")
    settings = {"target_modules": ["c_fc"], "fan_in_fan_out": True, "use_dora": True}
    folder = adapter(source, tmp_path / "adapter", **settings)
    model = load_model(str(source))
    base = AutoModelForCausalLM.from_pretrained(source)
    expected = PeftModel.from_pretrained(base, folder).merge_and_unload()
    with edit_from_checkpoint(model, own_pair, folder).applied(model):
        for name, parameter in expected.named_parameters():
            assert torch.equal(model._module.get_parameter(name), parameter)


def refused(model, pair, checkpoint, match) -> None:
    """One sentence, and the model as it was."""
    before = model_hash(model)
    with pytest.raises(UserError, match=match) as error:
        edit_from_checkpoint(model, pair, str(checkpoint))
    assert "\n" not in str(error.value) and model_hash(model) == before


def test_equal_weights_are_refused(tiny_folder, own_pair):
    source = tiny_folder("llama")
    refused(load_model(str(source)), own_pair, source, "nothing was unlearned: give the one")


def test_another_tokenizer_is_refused(tiny_folder, tmp_path, own_pair):
    source = tiny_folder("llama")
    checkpoint = saved_copy(source, tmp_path / "other", shift_all)
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[WORDS[9]], vocabulary[WORDS[8]] = vocabulary[WORDS[8]], vocabulary[WORDS[9]]
    path.write_text(json.dumps(content))
    refused(load_model(str(source)), own_pair, checkpoint, "another tokenizer than the original")


def test_other_shapes_and_missing_folders_are_refused(tiny_folder, tmp_path, own_pair):
    source = tiny_folder("llama")
    model, config = load_model(str(source)), tiny_config("llama")
    config.intermediate_size = 32
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    refused(
        model, own_pair, tmp_path, r"another architecture.*\(32, 16\), in the original \(24, 16"
    )
    refused(model, own_pair, tmp_path / "missing", "There is no folder")


def test_weights_that_are_not_finite_are_refused(tiny_folder, tmp_path, own_pair):
    source = tiny_folder("llama")
    checkpoint = saved_copy(
        source, tmp_path / "other", lambda m: m.lm_head.weight[0, 0].fill_(torch.nan)
    )
    refused(load_model(str(source)), own_pair, checkpoint, "not finite")


def test_another_function_of_the_same_weights_is_refused(tiny_folder, tmp_path, own_pair):
    source = tiny_folder("llama")
    checkpoint = saved_copy(source, tmp_path / "other", lambda m: m.lm_head.weight.add_(0.01))
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1.0}))
    refused(load_model(str(source)), own_pair, checkpoint, r"something else.*\(rms_norm_eps\)")


def test_adapters_that_do_not_fit_are_refused(tiny_folder, tmp_path, own_pair):
    source = tiny_folder("llama")
    model, folder = load_model(str(source)), tmp_path / "adapter"
    adapter(tiny_folder("gpt2"), folder, target_modules=["c_fc"], fan_in_fan_out=True)
    refused(model, own_pair, folder, "does not fit this model .*give the model that it was trained")
    folder = tmp_path / "narrow"
    adapter(source, folder)
    weights = folder / "adapter_model.safetensors"
    factors = load_file(weights)
    save_file({n: t[..., :8].contiguous() for n, t in factors.items()}, weights)
    refused(model, own_pair, folder, "does not fit this model")
    save_file(dict(list(factors.items())[1:]), weights)
    refused(model, own_pair, folder, "it lacks 'base_model")
    save_file(factors | {"base_model.model.other.lora_A.weight": torch.ones(2, 2)}, weights)
    refused(model, own_pair, folder, "no place for '.*other")
    save_file({n: t * torch.inf for n, t in factors.items()}, weights)
    refused(model, own_pair, folder, "not finite")
    weights.rename(folder / "adapter_model.bin")
    refused(model, own_pair, folder, "has no adapter_model.safetensors; pickled weights are never")


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "XLORA"},
        {"megatron_config": {"x": 1}, "megatron_core": "antigravity"},
        {"layer_replication": [[0, 2]]},
        {"init_lora_weights": "pissa"},
    ],
)
def test_only_plain_lora_is_read(tiny_folder, tmp_path, own_pair, settings):
    source, folder = tiny_folder("llama"), tmp_path / "adapter"
    adapter(source, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    (name, *_) = settings
    refused(load_model(str(source)), own_pair, folder, f"not plain LoRA \\('{name}'.*merge it")


def test_a_patch_and_a_checkpoint_are_one_too_many(tiny_model, own_pair):
    with pytest.raises(UserError, match="One edit is verified"):
        load_edit_under_test(tiny_model(), own_pair, patch="a", checkpoint="b")
