"""Model folders from elsewhere: what is not the model's own, or not whole, is one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    MistralConfig,
    Olmo2Config,
    Qwen3Config,
)

from helpers.errors import UserError
from helpers.forward.scoring import next_token_logprobs
from helpers.io.files import atomic_path
from helpers.models import load_model, model_hash
from helpers.models.tokenization import save_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LAST = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A tiny llama's folder that may be damaged."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


def write(folder, file: str, **entries) -> None:
    """Change entries of a JSON file."""
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | entries))


def change(folder, how) -> None:
    """Write the weights again as `how` gives them."""
    save_file(how(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def shard(folder, files: list, index: dict | None = None) -> None:
    """The weights in several files, and an index that names `files`."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = list(tensors)
    for i, file in enumerate(files):
        path = folder / str(file)
        if path.parent.is_dir() and path.suffix == ".safetensors":
            save_file({n: tensors[n] for n in names[i :: len(files)]}, path, {"format": "pt"})
    where = {n: files[i % len(files)] for i, n in enumerate(names)}
    (folder / INDEX).write_text(json.dumps(index or {"metadata": {}, "weight_map": where}))


def refused(folder, sentence: str, **options) -> None:
    """Loading is refused by one sentence."""
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(str(folder), **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_the_weights_own(tiny_folder, family):
    folder = tiny_folder(family)
    stored = list(load_file(folder / WEIGHTS).values())
    for name, parameter in load_model(str(folder))._module.named_parameters():
        assert any(torch.equal(parameter, tensor) for tensor in stored), name


@pytest.mark.parametrize("kind", [Gemma2Config, MistralConfig, Olmo2Config, Qwen3Config])
def test_small_models_of_further_families_load(kind, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 64}
    config = kind(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path))


def test_families_that_are_not_known_are_told(tmp_path):
    config = BloomConfig(hidden_size=16, n_layer=1, n_head=4, vocab_size=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "Bloom.*not known yet")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (lambda t: {n: x for n, x in t.items() if n != LAST}, f"lack '{LAST}'"),
        (lambda t: {f"x.{n}": x for n, x in t.items()}, "lack 'model.embed_tokens.weight'"),
        (lambda t: t | {"model.layers.0.mlp.up_proj.bias": torch.zeros(24)}, "no place"),
        (lambda t: {n: x.to(torch.int8) for n, x in t.items()}, "'lm_head.weight' is of I8"),
        (lambda t: {n: x.to(torch.complex64) for n, x in t.items()}, "is of C64"),
        (lambda t: t | {LAST: t[LAST].to(torch.float8_e4m3fn)}, f"'{LAST}' is of F8_E4M3"),
        (lambda t: t | {"lm_head.weight": torch.zeros(64, 8)}, r"\(64, 16\).*have \(64, 8\)"),
        (lambda t: t | {LAST: t[LAST] * torch.nan}, f"'{LAST}' holds numbers.*not finite"),
        (lambda t: t | {LAST: t[LAST] + torch.inf}, f"'{LAST}' holds numbers.*not finite"),
        (lambda t: {"z": torch.zeros(0)}, "weights are 1 tensors"),
        (lambda t: {}, "without a single tensor"),
    ],
)
def test_weights_that_are_not_the_configurations_are_refused_by_name(folder, how, sentence):
    change(folder, how)
    refused(folder, sentence)


@pytest.mark.parametrize(
    ("n", "sentence"),
    [
        (4, "lack 'model.layers.3.self_attn.q_proj.weight'.*9 such"),
        (2, "have 'model.layers.2.input_layernorm.weight', for which.*9 such"),
        (10**7, "says num_hidden_layers 10000000, but its weights are 30 tensors"),
    ],
)
def test_more_or_fewer_layers_than_the_weights_have_are_refused(folder, n, sentence):
    write(folder, "config.json", num_hidden_layers=n)
    refused(folder, sentence)


def test_a_widened_model_that_was_saved_plainly_is_told_how_to_save_it(folder):
    wide = {
        "model.layers.1.mlp.up_proj.weight": torch.zeros(26, 16),
        "model.layers.1.mlp.gate_proj.weight": torch.zeros(26, 16),
        "model.layers.1.mlp.down_proj.weight": torch.zeros(16, 26),
    }
    change(folder, lambda t: t | wide)
    refused(folder, "save_widened")


def test_weights_in_half_precision_and_forgotten_buffers_load(folder):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    change(folder, lambda t: {n: x.bfloat16() for n, x in t.items()} | buffer)
    module = load_model(str(folder))._module
    assert module.dtype == torch.float32


def test_a_tensor_that_is_there_twice_is_refused(folder):
    shard(folder, ["model-1.safetensors", "model-2.safetensors"])
    assert load_model(str(folder))
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")
    refused(folder, "the tensor '.*' twice")
    raw = (folder / "model-2.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    tensor = max(json.loads(raw[8 : 8 + n]), key=len)
    header = raw[8 : 8 + n].replace(b"{", b'{"%s":{"dtype":"F32"},' % tensor.encode(), 1)
    twice = len(header).to_bytes(8, "little") + header + raw[8 + n :]
    (folder / "model-2.safetensors").write_bytes(twice)
    refused(folder, "twice|cannot be read")


@pytest.mark.parametrize(
    "file", ["../model-1.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, None]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(folder, file):
    shard(folder, [file])
    refused(folder, "names the file '.*', which does not lie in that folder")


def test_an_index_is_looked_at_even_where_nobody_needs_it(folder):
    index = {"metadata": {}, "weight_map": {"a": "../outside.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "does not lie in that folder")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [1], "metadata": {}}])
def test_an_index_without_files_is_refused(folder, index):
    shard(folder, ["model-1.safetensors"], index={"x": 1} | index)
    refused(folder, "has no 'metadata' or no 'weight_map'")


def test_missing_and_damaged_weights_are_told(folder):
    raw = (folder / WEIGHTS).read_bytes()
    for damaged in (b"", raw[:-10], (2**60).to_bytes(8, "little") + raw, raw[:8] + b"{" * 5000):
        (folder / WEIGHTS).write_bytes(damaged)
        refused(folder, "damaged: the weights model.safetensors cannot be read.*save them again")
    (folder / WEIGHTS).write_bytes(raw)
    shard(folder, ["model-1.safetensors", "model-2.safetensors"])
    (folder / "model-2.safetensors").unlink()
    refused(folder, "weights model-2.safetensors are missing")
    (folder / INDEX).unlink()
    refused(folder, "neither model.safetensors nor")
    piece = folder / "shard-00000-model-00001-of-00001.safetensors"
    shutil.copy(folder / "model-1.safetensors", piece)
    refused(folder, "pieces of a distributed training")


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    refused(folder, "holds an adapter.*merge the adapter")
    (folder / "config.json").unlink()
    refused(folder, "holds an adapter")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_models_own_code_is_never_run_and_never_asked_for(folder, file, monkeypatch):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    write(folder, file, auto_map=classes | {"AutoTokenizer": ["evil.T", None]})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    refused(folder, f"{file} names 'auto_map'.*code of its own")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("quantization_config", {"quant_method": "torchao"}),
        ("transformers_weights", "../other.safetensors"),
        ("fusion_config", {"patch_embeddings": True}),
        ("configuration_files", ["config.1.0.0.json"]),
        ("distributed_config", {"tp_size": 2}),
    ],
)
def test_what_would_have_something_else_read_is_refused(folder, entry, value):
    write(folder, "config.json", **{entry: value})
    refused(folder, f"names '{entry}'")


KERNEL = "kernels-community/flash-attn"


@pytest.mark.parametrize(
    "entries",
    [
        {"_attn_implementation": KERNEL, "attn_implementation": KERNEL, "use_kernels": True},
        {"_attn_implementation_internal": KERNEL, "_experts_implementation": KERNEL},
        {"output_attentions": True, "output_hidden_states": True, "return_dict": False},
        {"is_encoder_decoder": True, "use_cache": False},
    ],
)
def test_how_a_model_is_run_is_not_for_its_folder_to_say(folder, entries):
    plain = load_model(str(folder))
    expected = next_token_logprobs(plain, ["w1 w2"])
    write(folder, "config.json", **entries)
    write(folder, "generation_config.json", repetition_penalty=9.0, num_beams=3)
    model = load_model(str(folder))
    assert model._module.config._attn_implementation == plain._module.config._attn_implementation
    assert model_hash(model) == model_hash(plain)
    assert torch.equal(next_token_logprobs(model, ["w1 w2"]), expected)
    assert model._module.generation_config.repetition_penalty in (None, 1.0)


@pytest.mark.parametrize(
    ("entry", "value", "sentence"),
    [
        ("num_hidden_layers", 0, "no place"),
        ("num_attention_heads", 0, "integer modulo by zero|division"),
        ("num_attention_heads", 10**9, "not a multiple"),
        ("hidden_size", -1, "not a multiple"),
        ("hidden_size", "x", "expected int, got str"),
        ("hidden_size", 10**9, "describes 495,000,000,004 numbers, but its weights have 7,920"),
        ("intermediate_size", 10**15, "describes .* numbers"),
        ("vocab_size", 10**12, "describes .* numbers"),
        ("vocab_size", -5, "cannot be loaded"),
        ("head_dim", 10**9, "describes .* numbers"),
        ("model_type", ["llama"], "cannot be loaded"),
        ("model_type", "nope", "has model type `nope`"),
        ("hidden_act", "os.system", "'os.system'"),
        ("dtype", "os", "cannot be loaded"),
        ("rope_parameters", "x", "'rope_parameters'"),
        ("max_position_embeddings", "x", "expected int, got str"),
    ],
)
def test_a_configuration_that_fits_no_weights_is_refused_with_its_cause(
    folder, entry, value, sentence
):
    write(folder, "config.json", **{entry: value})
    refused(folder, sentence)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "{" * 9999,
        '{"a":' * 99999,
        '{"a":' + "9" * 5000 + "}",
        "\xff",
        '{"model_type":"llama","model_type":"gpt2"}',
    ],
    ids=["list", "empty", "open", "deep", "digits", "bytes", "twice"],
)
def test_a_configuration_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, "config.json|model_type")


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("tokenizer.json", "{}", "a tokenizer that cannot be loaded"),
        ("tokenizer.json", "[]", "a tokenizer that cannot be loaded"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("tokenizer_config.json", "[]", "holds list, not an object"),
        ("tokenizer_config.json", '{"bos_token": 3}', "a tokenizer that cannot be loaded"),
        ("tokenizer_config.json", '{"chat_template": 7}', "chat template is no text"),
        ("tokenizer_config.json", '{"fast_tokenizer_files": ["../t.json"]}', "does not lie in"),
    ],
)
def test_a_damaged_tokenizer_is_refused(folder, file, text, sentence):
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    refused(folder, sentence)


def test_a_tokenizer_of_another_model_is_refused(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"q{i}": 64 + i for i in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    refused(folder, "114 tokens, the model 64: it is another model's")


def test_a_folder_that_may_not_be_read_is_told(folder, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder), "read_bytes", denied)
    refused(folder, "cannot be read .*Permission denied")


def test_words_of_a_folder_cannot_command_a_terminal(folder):
    change(folder, lambda t: t | {"\x1b[31mred": torch.zeros(1)})
    refused(folder, r"have '\\x1b\[31mred'")


def test_a_full_disk_while_a_tokenizer_is_saved_is_told_as_such(tmp_path):
    class Full:
        def save_pretrained(self, folder):
            raise Exception("No space left on device (os error 28)")  # as tokenizers does

    with (
        pytest.raises(UserError, match="disk is full"),
        atomic_path(tmp_path / "model", folder=True) as scratch,
    ):
        save_tokenizer(Full(), scratch)
    assert not (tmp_path / "model").exists()
    save_tokenizer(tiny_tokenizer(), tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
