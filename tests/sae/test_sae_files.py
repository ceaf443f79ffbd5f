"""SAEs as files: ours come back, SAELens's are understood, and both give the same numbers."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from peers import peer_python
from safetensors.torch import load_file, save_file

from helpers.errors import UserError
from helpers.sae import ARCHITECTURES, SAEConfig, build, load_pretrained, load_sae, save_sae
from helpers.sae.saelens_config import OwnConfig

NUMBERS = {
    "relu": {"l1_coefficient": 0.3},
    "gated": {"l1_coefficient": 0.3},
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "jumprelu": {"l0_coefficient": 0.3},
    "matryoshka": {"k": 3},
}
X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))


def make(architecture: str, **more):
    sae = build(SAEConfig(architecture, d_in=8, d_sae=32, layer=3, **NUMBERS[architecture] | more))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in sae.parameters():
            p += 0.2 * torch.randn(p.shape, generator=draw)
        for name in ("threshold", "last"):
            if name in dict(sae.named_buffers()):
                getattr(sae, name).fill_(0.5)
        sae.normalize_decoder()
    return sae.eval()


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("transcodes", [False, True], ids=["sae", "transcoder"])
def test_a_saved_sae_comes_back_as_what_it_was(tmp_path, architecture, transcodes):
    more = {"site": "mlp_in", "target": "mlp", "d_out": 6} if transcodes else {"site": "mlp"}
    sae = make(architecture, **more)
    save_sae(sae, tmp_path / "sae")
    back = load_sae(tmp_path / "sae")
    assert type(back) is type(sae)
    assert back.cfg == sae.cfg
    assert torch.allclose(back(X), sae(X), atol=1e-6)
    assert torch.equal(back.encode(X) > 0, sae.encode(X) > 0)


def test_damaged_or_unknown_files_are_told_in_one_sentence(tmp_path):
    folder = tmp_path / "sae"
    save_sae(make("topk"), folder)
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    good, numbers = weights.read_bytes(), json.loads(config.read_text())

    def refused(sentence: str):
        with pytest.raises(UserError, match=sentence) as caught:
            load_sae(folder)
        assert "\n" not in str(caught.value)

    weights.write_bytes(good[:-20])
    refused("is damaged")
    weights.write_bytes(good)
    for change, sentence in [
        ({"architecture": "temporal", "metadata": {}}, "architecture 'temporal' is not known"),
        ({"metadata": {}, "normalize_activations": "layer_norm"}, "normalises its input"),
        ({"metadata": {}, "d_sae": 33}, "does not hold an SAE|is .* and should be"),
        ({"metadata": {}, "d_in": None}, "does not hold an SAE"),
    ]:
        config.write_text(json.dumps(numbers | change))
        refused(sentence)
    config.unlink()
    refused("is missing")


def theirs(folder, config: dict, tensors: dict | None = None) -> dict[str, torch.Tensor]:
    """A folder as SAELens writes it, of 6 inputs and 10 latents; returns the tensors."""
    draw = torch.Generator().manual_seed(5)
    shapes = {"W_enc": (6, 10), "b_enc": (10,), "W_dec": (10, 6), "b_dec": (6,)}
    tensors = {n: torch.randn(s, generator=draw) for n, s in shapes.items()} | (tensors or {})
    tensors = {name: t for name, t in tensors.items() if t is not None}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    sizes = {"d_in": 6, "d_sae": 10, "dtype": "float32", "device": "cpu"}
    (folder / "cfg.json").write_text(json.dumps(sizes | config))
    return tensors


def topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """SAELens's TopK: the k largest, where they are positive."""
    return pre.relu() * (pre >= pre.topk(k, dim=-1).values[:, -1:])


Y = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
FACTOR = torch.linspace(0.5, 2, 10)
THRESHOLD = torch.linspace(-0.5, 1, 10)
EIGHT = {
    n: torch.randn(s, generator=torch.Generator().manual_seed(6))
    for n, s in {"W_enc": (8, 10), "W_dec": (10, 8), "b_dec": (8,)}.items()
}
OLD = {"hook_point": "blocks.4.hook_resid_pre", "model_name": "gpt2-small", "hook_point_layer": 4}


@pytest.mark.parametrize(
    ("config", "more", "latents"),
    [
        pytest.param(OLD, {}, lambda pre, t: pre.relu(), id="no architecture"),
        pytest.param(
            OLD | {"activation_fn": "relu", "normalize_activations": False},
            {"scaling_factor": torch.ones(10)},
            lambda pre, t: pre.relu(),
            id="a scaling factor of ones",
        ),
        pytest.param(
            {"architecture": "standard", "activation_fn_str": "topk"}
            | {"activation_fn_kwargs": {"k": 5}, "apply_b_dec_to_input": True},
            {},
            lambda pre, t: topk(pre, 5),
            id="TopK by its activation",
        ),
        pytest.param(
            {"architecture": "topk", "activation_fn": "topk", "activation_fn_kwargs": {"k": 2}},
            {},
            lambda pre, t: topk(pre, 2),
            id="TopK of version 5",
        ),
        pytest.param(
            {"architecture": "topk", "k": 3, "metadata": {"sae_lens_version": "6.2.0"}},
            {},
            lambda pre, t: topk(pre, 3),
            id="TopK of version 6",
        ),
        pytest.param(
            {"architecture": "standard", "finetuning_scaling_factor": True},
            {"scaling_factor": FACTOR},
            lambda pre, t: pre.relu(),
            id="scaled",
        ),
        pytest.param(
            {"architecture": "standard", "finetuning_scaling_factor": True},
            {"finetuning_scaling_factor": FACTOR},
            lambda pre, t: pre.relu(),
            id="scaled, by the longer name",
        ),
        pytest.param(
            {"architecture": "jumprelu", "apply_b_dec_to_input": True},
            {"threshold": THRESHOLD},
            lambda pre, t: pre.relu() * (pre > THRESHOLD),
            id="JumpReLU",
        ),
        pytest.param(
            {"architecture": "gated"},
            {"b_enc": None, "b_gate": FACTOR - 1, "r_mag": THRESHOLD, "b_mag": FACTOR / 3},
            lambda pre, t: ((pre - t["b_gate"]) * t["r_mag"].exp() + t["b_mag"]).relu() * (pre > 0),
            id="gated",
        ),
    ],
)
@pytest.mark.parametrize("subtracts", [None, True, False])
def test_an_sae_of_saelens_gives_its_own_latents_and_reconstruction(
    tmp_path, config, more, latents, subtracts
):
    """SAELens: z = act((x − b_dec) W_enc + b_enc), x̂ = (z · scale) W_dec + b_dec.

    b_dec is subtracted where nothing is said.
    """
    if subtracts is not None:
        config = config | {"apply_b_dec_to_input": subtracts}
    t = theirs(tmp_path / "sae", config, more)
    x = Y - t["b_dec"] if config.get("apply_b_dec_to_input", True) else Y
    z = latents(x @ t["W_enc"] + t.get("b_enc", t.get("b_gate")), t)
    scaled = "finetuning_scaling_factor" in config
    sae = load_sae(tmp_path / "sae")
    assert torch.allclose(sae.encode(Y), z, atol=1e-5)
    out = (z * FACTOR if scaled else z) @ t["W_dec"] + t["b_dec"]
    assert torch.allclose(sae(Y), out, atol=1e-5)
    if config.keys() >= OLD.keys():
        cfg = sae.cfg
        assert (cfg.site, cfg.layer, cfg.model) == ("residual", 3, "gpt2-small")


def test_a_choice_by_the_decoders_lengths_is_topks_alone(tmp_path):
    config = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    t = theirs(tmp_path / "topk", config | {"apply_b_dec_to_input": False})
    norms = t["W_dec"].norm(dim=1)
    z = topk((Y @ t["W_enc"] + t["b_enc"]) * norms, 3)
    sae = load_sae(tmp_path / "topk")
    assert torch.allclose(sae.encode(Y), z, atol=1e-5)
    assert torch.allclose(sae(Y), (z / norms) @ t["W_dec"] + t["b_dec"], atol=1e-5)
    config |= {"architecture": "standard", "apply_b_dec_to_input": False}
    t = theirs(tmp_path / "standard", config)
    z = (Y @ t["W_enc"] + t["b_enc"]).relu()
    assert torch.allclose(load_sae(tmp_path / "standard").encode(Y), z, atol=1e-5)


HOOKS = {
    "blocks.4.hook_resid_post": ("residual", 4),
    "blocks.4.hook_resid_pre": ("residual", 3),
    "blocks.11.hook_mlp_out": ("mlp", 11),
    "blocks.4.hook_attn_out": ("attention", 4),
    "blocks.4.attn.hook_z": ("heads", 4),
    "blocks.8.mlp.hook_post": ("neurons", 8),
    "blocks.8.mlp.hook_in": ("mlp_in", 8),
    "blocks.8.ln2.hook_normalized": ("mlp_in", 8),
    "model.layers.8": ("residual", 8),
    "transformer.h.3": ("residual", 3),
    "model.layers.8.mlp": ("mlp", 8),
    "gpt_neox.layers.2.attention": ("attention", 2),
    "model.layers.8.self_attn": ("attention", 8),
}
NOWHERE = [
    "blocks.0.hook_resid_pre",  # the embeddings
    "blocks.8.hook_resid_mid",
    "blocks.8.hook_mlp_in",
    "blocks.8.mlp.hook_pre",
    "blocks.8.attn.hook_q",
    "model.layers.8.input_layernorm",
    "hook_embed",
    f"blocks.{'9' * 5000}.hook_mlp_out",
    "mlp 8",
]


@pytest.mark.parametrize("hook", [*HOOKS, *NOWHERE], ids=lambda hook: hook[:40])
@pytest.mark.parametrize("age", ["hook_point", "hook_name", "metadata"])
def test_a_hook_is_a_site_and_a_layer_or_refused(tmp_path, hook, age):
    config = {age: hook}
    if age == "metadata":
        config = {"metadata": {"sae_lens_version": "6.0.1", "hook_name": hook}}
        config |= {"architecture": "standard", "reshape_activations": "hook_z"}
    theirs(tmp_path / "sae", config)
    if hook in HOOKS:
        cfg = load_sae(tmp_path / "sae").cfg
        assert (cfg.site, cfg.layer) == HOOKS[hook]
    else:
        with pytest.raises(UserError, match=r"there is no site here.*known are blocks") as caught:
            load_sae(tmp_path / "sae")
        assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_a_transcoder_goes_between_two_hooks_of_one_layer(tmp_path):
    config = {"architecture": "transcoder", "d_out": 6}
    between = {
        "hook_name": "blocks.8.ln2.hook_normalized",
        "hook_name_out": "blocks.8.hook_mlp_out",
    }
    t = theirs(tmp_path / "sae", config | {"metadata": {"sae_lens_version": "6.1"} | between})
    sae = load_sae(tmp_path / "sae")
    assert (sae.cfg.site, sae.cfg.target, sae.cfg.layer) == ("mlp_in", "mlp", 8)
    z = (Y @ t["W_enc"] + t["b_enc"]).relu()
    assert torch.allclose(sae(Y), z @ t["W_dec"] + t["b_dec"], atol=1e-5)
    for change, sentence in [
        ({"hook_name_out": None}, "only one of the hooks"),
        ({"hook_name_out": "blocks.9.hook_mlp_out"}, "reads layer 8 and predicts layer 9"),
    ]:
        theirs(tmp_path / "sae", config | between | change)
        with pytest.raises(UserError, match=sentence):
            load_sae(tmp_path / "sae")
    theirs(tmp_path / "sae", {"architecture": "transcoder"} | between)
    with pytest.raises(UserError, match="how wide its output is"):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize(
    ("config", "tensors", "sentence"),
    [
        ({"activation_fn": "tanh-relu"}, {}, "activation 'tanh-relu' of a 'standard' SAE is not"),
        ({"architecture": "gated", "activation_fn": "topk"}, {}, "'topk' of a 'gated' SAE is not"),
        ({"activation_fn_str": "topk"}, {}, "does not say how many latents are active"),
        (
            {
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 5, "postact_fn": "Identity"},
            },
            {},
            "'activation_fn_kwargs.postact_fn': Extra inputs",
        ),
        ({"normalize_activations": "layer_norm"}, {}, "normalises its input \\('layer_norm'\\)"),
        ({"normalize_activations": True}, {}, "normalises its input, which"),
        ({"hook_point_head_index": 3}, {}, "one attention head alone"),
        ({"reshape_activations": "\x1b[2J"}, {}, "reshaping '.x1b.2J' of"),
        (
            {"metadata": {"sae_lens_version": "6.1", "hook_name": "blocks.1.attn.hook_z"}},
            {},
            "each attention head by itself",
        ),
        ({}, {"scaling_factor": FACTOR}, "a scaling factor that its numbers do not speak of"),
        ({"finetuning_scaling_factor": True}, {"scaling_factor": FACTOR[:9]}, "is .9,. and should"),
        ({}, {"W_skip": torch.zeros(6, 6)}, "hold 'W_skip', which is not supported"),
        ({}, {"b_enc": None}, "lack 'b_enc'"),
        ({"d_sae": 10**9}, {}, "W_enc is .6, 10. and should be .6, 1000000000."),
        ({"d_sae": 2**80}, {}, "'d_sae': Input should be less than"),
        ({"d_sae": "10"}, {}, "'d_sae': Input should be a valid integer"),
        ({"architecture": ["topk"]}, {}, "'architecture': Input should be a valid string"),
        ({"hook_name": 8}, {}, "'hook_name': Input should be a valid string"),
        ({"metadata": 3}, {}, "'metadata': Input should be"),
    ],
)
def test_what_is_not_read_as_saelens_reads_it_is_refused(tmp_path, config, tensors, sentence):
    theirs(tmp_path / "sae", config, tensors)
    with pytest.raises(UserError, match=sentence) as caught:
        load_sae(tmp_path / "sae")
    told = str(caught.value)
    assert "\n" not in told and "\x1b" not in told and told.endswith("save the SAE again.")


def test_our_own_numbers_are_checked_too(tmp_path):
    folder = tmp_path / "sae"
    save_sae(make("topk", site="mlp"), folder)
    path = folder / "cfg.json"
    good = json.loads(path.read_text())
    for change, sentence in [
        ({"k": "abc"}, "llm_unlearning.k': Input should be a valid integer"),
        ({"k": float("inf")}, "llm_unlearning.k'"),
        ({"k": 33}, "dictionary has only 32 latents"),
        ({"k": 4}, "contradict our own"),
        ({"seed": 2**80}, "llm_unlearning.seed'"),
        ({"layer": "x"}, "llm_unlearning.layer'"),
        ({"layer": 4}, "not the one that its weights were saved with"),
        ({"site": "../mlp"}, "should be one of heads, attention"),
        ({"architecture": "temporal"}, "should be one of relu"),
        ({"d_sae": 10**9}, "contradict our own"),
        ({"matryoshka_widths": [1.5]}, "llm_unlearning.matryoshka_widths"),
        ({"another": 1}, "llm_unlearning.another"),
    ]:
        ours = good["metadata"]["llm_unlearning"] | change
        path.write_text(json.dumps(good | {"metadata": {"llm_unlearning": ours}}))
        with pytest.raises(UserError, match=sentence) as caught:
            load_sae(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "",
        "[]",
        "null",
        "\xff\xfe",
        "[" * 100_000,
        '{"d_in": ' + "9" * 5000 + "}",
        " " * 2_000_000,
    ],
    ids=["cut", "empty", "a list", "null", "binary", "deep", "long number", "large"],
)
def test_a_cfg_that_is_no_json_of_that_kind_is_told(tmp_path, content):
    save_sae(make("relu"), tmp_path / "sae")
    (tmp_path / "sae" / "cfg.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"cfg\.json (is damaged|has 2\.0 MB)") as caught:
        load_sae(tmp_path / "sae")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_changed_byte_or_number_is_noticed(tmp_path, architecture):
    folder = tmp_path / "sae"
    sae = make(architecture)
    save_sae(sae, folder)
    assert set(load_file(folder / "sae_weights.safetensors")) == set(sae.tensors())
    path = folder / "sae_weights.safetensors"
    good = bytearray(path.read_bytes())
    good[-3] ^= 1
    path.write_bytes(good)
    with pytest.raises(UserError, match=r"sae_weights.safetensors is damaged .its checksum"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.tensor(float("nan")), "'b_dec' holds numbers that are not finite"),
        (torch.tensor(float("inf")), "'b_dec' holds numbers that are not finite"),
        (torch.tensor(1j), "'b_dec' holds complex numbers"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, sentence):
    theirs(tmp_path / "sae", {}, {"b_dec": value.expand(6).clone()})
    with pytest.raises(UserError, match=sentence) as caught:
        load_sae(tmp_path / "sae")
    assert str(caught.value).count(":") == 2  # one advice
    if not value.is_complex():
        sae = make("topk")
        sae.b_dec.data[2] = value
        with pytest.raises(UserError, match=sentence):
            save_sae(sae, tmp_path / "mine")
        assert not (tmp_path / "mine").exists()


def test_numbers_that_float32_does_not_hold_are_refused(tmp_path):
    theirs(tmp_path / "sae", {}, {"b_dec": torch.full((6,), 1e300, dtype=torch.float64)})
    with pytest.raises(UserError, match="in float32: 'b_enc' holds numbers that are not finite"):
        load_sae(tmp_path / "sae")
    half = {n: t.half() for n, t in theirs(tmp_path / "sae", {}).items()}
    theirs(tmp_path / "sae", {"dtype": "float16"}, half)
    z = ((Y - half["b_dec"].float()) @ half["W_enc"].float() + half["b_enc"].float()).relu()
    assert torch.allclose(load_sae(tmp_path / "sae").encode(Y), z, atol=1e-5)


def test_a_threshold_for_all_latents_is_one(tmp_path):
    folder = tmp_path / "sae"
    save_sae(make("batch_topk"), folder)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["threshold"][3] += 1
    save_file(tensors, folder / "sae_weights.safetensors")  # as SAELens does after folding norms
    with pytest.raises(UserError, match="has one threshold, and its latents differ"):
        load_sae(folder)


def test_numbers_of_a_file_are_those_of_an_sae():
    assert set(OwnConfig.model_fields) == {f.name for f in fields(SAEConfig)}
    cfg = make("matryoshka", site="mlp").cfg
    assert OwnConfig.model_validate_json(json.dumps(cfg.to_dict())).config() == cfg


def test_without_saelens_a_published_sae_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(UserError, match="SAELens, which is not installed"):
        load_pretrained("gpt2-small-res-jb", "blocks.8.hook_resid_pre")


LENS = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.saes import *
from sae_lens.saes.transcoder import *
folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]

def keep(sae, place):
    with torch.no_grad():
        found = {"latents": sae.encode(x), "out": sae(x)}
    save_file({k: v.contiguous() for k, v in found.items()}, place / "seen.safetensors")

for found in sorted((folder / "ours").iterdir()) + sorted((folder / "old").iterdir()):
    keep(SAE.load_from_disk(str(found)), found)
torch.manual_seed(0)
kinds = [
    (StandardSAE, StandardSAEConfig(d_in=8, d_sae=32)),
    (GatedSAE, GatedSAEConfig(d_in=8, d_sae=32)),
    (TopKSAE, TopKSAEConfig(d_in=8, d_sae=32, k=3)),
    (TopKSAE, TopKSAEConfig(d_in=8, d_sae=32, k=3, rescale_acts_by_decoder_norm=True)),
    (JumpReLUSAE, JumpReLUSAEConfig(d_in=8, d_sae=32, apply_b_dec_to_input=False)),
    (Transcoder, TranscoderConfig(d_in=8, d_out=6, d_sae=32, apply_b_dec_to_input=False)),
]
for i, (kind, cfg) in enumerate(kinds):
    sae = kind(cfg)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.add_(0.2 * torch.rand_like(p) if name == "threshold" else 0.2 * torch.randn_like(p))
    sae.cfg.metadata.hook_name = "blocks.5.hook_resid_pre"
    if "Transcoder" in kind.__name__:
        sae.cfg.metadata.hook_name = "blocks.5.ln2.hook_normalized"
        sae.cfg.metadata.hook_name_out = "blocks.5.hook_mlp_out"
    sae.save_model(folder / "theirs" / str(i))
    keep(sae, folder / "theirs" / str(i))
"""


@pytest.mark.slow
def test_saelens_and_we_read_each_others_files_and_agree(tmp_path):
    save_file({"x": X}, tmp_path / "x.safetensors")
    for name in ARCHITECTURES:
        save_sae(make(name, site="mlp"), tmp_path / "ours" / name)
    for name in ("relu", "jumprelu", "batch_topk"):
        transcoder = make(name, site="mlp_in", target="mlp", d_out=6)
        save_sae(transcoder, tmp_path / "ours" / f"{name}-transcoder")
    for name, config in {
        "relu": OLD | {"apply_b_dec_to_input": True, "normalize_activations": "none"},
        "nothing said": {"hook_name": "blocks.3.hook_resid_post", "hook_layer": 3},
        "topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
        "topk 5": {
            "architecture": "topk",
            "activation_fn": "topk",
            "activation_fn_kwargs": {"k": 2},
        },
        "ones": {"architecture": "standard"},
        "jumprelu": {"architecture": "jumprelu"},
    }.items():
        more = {"threshold": THRESHOLD} if name == "jumprelu" else {}
        more |= {"scaling_factor": torch.ones(10)} if name == "ones" else {}
        (tmp_path / "old").mkdir(exist_ok=True)
        theirs(tmp_path / "old" / name, {"d_in": 8, "d_sae": 10} | config, more | EIGHT)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [peer_python("sae_lens", "sae-lens==6.54.12"), "-c", LENS, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = [f for name in ("ours", "old", "theirs") for f in sorted((tmp_path / name).iterdir())]
    assert len(folders) == 21
    for folder in folders:
        sae = load_sae(folder)
        seen = load_file(folder / "seen.safetensors")
        assert torch.allclose(sae(X), seen["out"], atol=1e-5), folder.name
        assert torch.equal(sae.encode(X) > 0, seen["latents"] > 0), folder.name
    read = load_sae(tmp_path / "theirs" / "0").cfg
    assert (read.site, read.layer) == ("residual", 4)
