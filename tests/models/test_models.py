"""Loading models and knowing their parts."""

import json

import pytest
import torch
from tiny_models import FAMILIES, tiny_tokenizer

from helpers.errors import UserError
from helpers.facts.corpus import corpus_tokens
from helpers.forward.final_states import final_states
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.models import architecture_of, load_model, model_hash, text_length, unembed
from helpers.models.tokenization import apply_chat_template

TOKENS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_gate_and_values_compute_the_mlp(tiny_model, family):
    """W_out · act(...) from the anatomy's views equals what the model's own MLP writes."""
    model = tiny_model(family)
    mlp = architecture_of(model).layers[1].mlp
    with torch.inference_mode(), model.trace(TOKENS):
        x = mlp.in_envoy.input.save()
        y = mlp.out_envoy.output.save()
    bias = mlp.in_module.bias if getattr(mlp.in_module, "bias", None) is not None else 0
    pre = x @ mlp.W_in().T + bias
    gate = mlp.W_gate()
    hidden = mlp.activation(pre) if gate is None else mlp.activation(x @ gate.T) * pre
    out_bias = mlp.out_module.bias if getattr(mlp.out_module, "bias", None) is not None else 0
    assert torch.allclose(hidden @ mlp.W_out().T + out_bias, y, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_anatomy_names_are_state_dict_names_in_stored_orientation(tiny_model, family):
    model = tiny_model(family)
    arch, state = architecture_of(model), model._module.state_dict()
    assert (arch.n_layers, arch.d_model, arch.n_heads, arch.d_head) == (3, 16, 4, 4)
    for layer in arch.layers:
        for name, view in (
            (layer.mlp.in_name, layer.mlp.W_in()),
            (layer.mlp.out_name, layer.mlp.W_out()),
        ):
            stored = state[name].T if layer.mlp.transposed else state[name]
            assert torch.equal(stored, view)
            assert view.data_ptr() == state[name].data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_unembedded_final_states_are_the_models_logits(tiny_model, family):
    model = tiny_model(family)
    with torch.inference_mode():
        expected = model._module(TOKENS).logits
    assert torch.allclose(unembed(model, final_states(model, TOKENS)), expected, atol=1e-6)


def test_layer_out_of_range_is_one_sentence(tiny_model):
    arch = architecture_of(tiny_model())
    assert arch.check_layer(-1) == 2
    with pytest.raises(UserError, match="no layer 3: this model has layers 0 to 2"):
        arch.check_layer(3)


def test_model_hash_changes_with_one_weight_and_comes_back(tiny_model):
    model = tiny_model()
    weight, before = architecture_of(model).layers[0].mlp.out_module.weight, model_hash(model)
    with torch.no_grad():
        kept = weight[0, 0].clone()
        weight[0, 0] += 1e-3
        assert model_hash(model) != before
        weight[0, 0] = kept
    assert model_hash(model) == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no-such-model", "Unknown model 'no-such-model'.*smollm2-135m"),
        ("./nowhere", "no folder ./nowhere"),
        ("missing.gguf", "no file missing.gguf"),
    ],
)
def test_unknown_models_are_told_in_one_sentence(name, sentence, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_reads_at_once_holds_for_every_pass(
    tiny_folder, family, tmp_path, monkeypatch
):
    """Windows of text are cut to it; with a table of positions a longer pass is one sentence."""
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    model = load_model(str(tiny_folder(family)))
    assert model.tokenizer.model_max_length == 64
    model.tokenizer = tiny_tokenizer()  # transformers takes some families' own class instead
    model.tokenizer.model_max_length = 64
    assert corpus_tokens(model.tokenizer, n_tokens=256).shape == (4, 64)
    assert (
        key_covariance(model, layers=[1], n_tokens=256)[1].shape[0] == architecture_of(model).d_mlp
    )
    assert text_length(model, 40) == 40
    long = torch.full((1, 65), 5)
    for run in (lambda: traced(model, long), lambda: model._module(long)):
        if family in ("gpt2", "opt"):
            with pytest.raises(UserError, match="A text has 65 tokens, and this model reads 64"):
                run()
        else:
            run()


def traced(model, tokens):
    with torch.inference_mode(), model.trace(tokens):
        architecture_of(model).layers[0].block.output.save()


def test_unknown_dtype_and_missing_gpu_are_told():
    with pytest.raises(UserError, match="no dtype 'float8'"):
        load_model(dtype="float8")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="No CUDA device"):
            load_model(device="cuda")


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled weights are never read"):
        load_model(str(tmp_path))


def test_damaged_weights_are_told_in_one_sentence(tiny_folder):
    folder = tiny_folder("llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_model(str(folder))


def test_damaged_gguf_is_told_and_leaves_no_cache_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(UserError, match=r"broken\.gguf cannot be read"):
        load_model(str(file))
    assert not list((tmp_path / "cache" / "models").glob("[!.]*"))  # a lock may stay


def test_default_model_is_smollm_and_knows_paris(smollm):
    arch = architecture_of(smollm)
    assert (arch.n_layers, arch.d_model, arch.d_mlp) == (30, 576, 1536)
    ids = torch.tensor([smollm.tokenizer("The capital of France is").input_ids])
    best = unembed(smollm, final_states(smollm, ids)[:, -1]).argmax()
    assert smollm.tokenizer.decode([best.item()]) == " Paris"


def test_the_chat_template_holds_question_and_beginning_of_the_answer(smollm, tiny_model):
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prefix = "The capital of France is"
    text = apply_chat_template(smollm.tokenizer, turns, assistant_prefix=prefix)
    assert "<|im_start|>user\nWhat is the capital of France?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\nThe capital of France is")
    with pytest.raises(UserError, match="no chat template"):
        apply_chat_template(tiny_model().tokenizer, turns)
