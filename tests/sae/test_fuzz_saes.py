"""SAEs, harvests and trainings whose files nobody tamed: the right thing, or one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers.errors import UserError
from helpers.forward.harvest import harvest
from helpers.forward.shards import Shards
from helpers.io.safe_text import is_control
from helpers.sae import SAEConfig, TrainSettings, build, load_sae, save_sae, train
from helpers.sae.checkpoints import read_metrics
from helpers.sae.saelens_config import HOOKS
from helpers.training.loop import train as train_module

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
OURS = {
    "relu": {"l1_coefficient": 0.1},
    "gated": {"l1_coefficient": 0.1},
    "topk": {"k": 2},
    "batch_topk": {"k": 2},
    "matryoshka": {"k": 2, "matryoshka_widths": (2, 6)},
    "jumprelu": {"l0_coefficient": 0.1},
}
SIZES = {"d_in": 4, "d_sae": 6, "dtype": "float32"}
LENS = [
    SIZES | {"hook_point": "blocks.3.hook_resid_pre", "activation_fn": "relu"},
    SIZES
    | {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}
    | {"hook_name": "blocks.3.hook_mlp_out", "hook_layer": 3, "hook_head_index": None},
    SIZES
    | {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}
    | {"apply_b_dec_to_input": True, "reshape_activations": "none"}
    | {"metadata": {"sae_lens_version": "6.1.0", "hook_name": "model.layers.3.mlp"}},
]
WORDS = ["relu", "topk", "tanh-relu", "hook_z", "layer_norm", "transcoder", "gated", "6.0", "none"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 4, 6, -1, 2**31, 2**63, 2**80, 10**9, 0.5, 1e300])
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([*WORDS, *(f"blocks.{i}.{hook}" for i in (0, 3) for hook in HOOKS)]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def one_sentence(error: UserError) -> None:
    text = str(error)
    assert text and len(text) < 2000 and not any(map(is_control, text)), text


@st.composite
def other_json(draw, good: dict) -> bytes:
    """A good file in which some fields are others, gone or new, at any depth."""
    value = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while True:
            key = draw(st.sampled_from([*place, *SIZES, "k"]))
            if not isinstance(place.get(key), dict) or not place[key] or draw(st.booleans()):
                break
            place = place[key]
        if draw(st.booleans()):
            place[key] = draw(VALUES)
        else:
            place.pop(key, None)
    return json.dumps(value).encode(errors="surrogatepass")


@st.composite
def other_bytes(draw, good: bytes) -> bytes:
    """A good file that was cut, or some bytes of which are others, gone or there twice."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        near = draw(st.booleans())  # headers and lines stand at the beginning
        at = draw(st.integers(0, min(len(data), 400) if near else len(data)))
        end = min(len(data), at + draw(st.integers(0, 9)))
        data[at:end] = draw(st.just(b"") | st.binary(max_size=9) | st.just(bytes(data[at:end]) * 2))
        if draw(st.integers(0, 5)) == 0:
            del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@pytest.fixture(scope="module")
def saes(tmp_path_factory) -> list[Path]:
    """Folders of SAEs: ours of every kind, and as SAELens wrote them."""
    place = tmp_path_factory.mktemp("saes")
    for name, numbers in OURS.items():
        save_sae(build(SAEConfig(name, 4, 6, site="mlp", layer=1, **numbers)), place / name)
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    for i, config in enumerate(LENS):
        folder = place / f"lens {i}"
        folder.mkdir()
        tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        save_file(tensors, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps(config))
    return sorted(place.iterdir())


@fuzz(per_second=80, seconds=3)
@given(st.data())
def test_an_sae_is_read_or_refused(saes, tmp_path_factory, data):
    good = data.draw(st.sampled_from(saes))
    folder = tmp_path_factory.getbasetemp() / "sae"
    shutil.copytree(good, folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(["cfg.json", "cfg.json", "sae_weights.safetensors"]))
    content = (good / name).read_bytes()
    kinds = other_bytes(content)
    if name == "cfg.json":
        kinds |= other_json(json.loads(content))
    (folder / name).write_bytes(data.draw(kinds))
    try:
        sae = load_sae(folder)
    except UserError as error:
        one_sentence(error)
    else:
        assert sae(X).shape == (7, 4) and all(t.isfinite().all() for t in sae.tensors().values())
        if name != "cfg.json" and "lens" not in good.name:  # what passes is what was written
            assert torch.equal(sae(X), load_sae(good)(X))


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Shards, settings, the folder of a training that was killed and what it should end in."""
    place = tmp_path_factory.mktemp("training")
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float16)
    x.tofile(place / "mlp.0.f16")
    tokens = torch.zeros(20, 10, dtype=torch.long)
    shards = Shards(place, "a model", "a tokenizer", tokens, np.arange(200), {("mlp", 0): 4})
    how = TrainSettings(steps=4, batch=50, log_every=1, checkpoint_every=2)
    config = SAEConfig("topk", 4, 6, k=2, site="mlp")

    def halt(lines):
        if lines[-1]["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(shards, [config], how, folder=place / "killed", watch=halt)
    (straight,) = train(shards, [config], how)
    return shards, config, how, place / "killed", straight


@fuzz(per_second=80, seconds=1)
@given(st.data())
def test_a_killed_training_goes_on_to_the_same_or_is_refused(training, tmp_path_factory, data):
    shards, config, how, killed, straight = training
    folder = tmp_path_factory.getbasetemp() / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(killed, folder)
    path = folder / data.draw(st.sampled_from(["checkpoint.safetensors", "metrics.jsonl"]))
    path.write_bytes(data.draw(other_bytes(path.read_bytes())))
    try:
        (sae,) = train(shards, [config], how, folder=folder)
    except UserError as error:
        one_sentence(error)
    else:
        assert torch.equal(sae.encoder, straight.encoder)
        assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]


LINE = {"step": 1, "sae": 0, "architecture": "topk", "site": "mlp", "layer": 0, "d_sae": 6}
LINE |= {"mse": 0.5, "l0": 2.0, "dead": 0.0, "lr": 0.1, "seconds": 0.2}


@fuzz(per_second=200, seconds=1)
@given(other_json(LINE) | other_bytes(json.dumps(LINE).encode() + b"\n"))
def test_metrics_are_lines_of_numbers_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(content + b"\n")
    try:
        lines = read_metrics(path.parent)
    except UserError as error:
        one_sentence(error)
    else:
        assert all(list(line) == list(LINE) for line in lines)


@pytest.fixture(scope="module")
def harvested(tmp_path_factory, tiny_folder):
    """A model, tokens and the folder of their harvest."""
    from helpers.models import load_model

    model, folder = load_model(str(tiny_folder("llama"))), tmp_path_factory.mktemp("harvest") / "x"
    tokens = torch.randint(4, 60, (6, 5), generator=torch.Generator().manual_seed(0))
    harvest(model, tokens, layers=[0], folder=folder)
    return model, tokens, folder


@fuzz(per_second=80, seconds=1)
@given(st.data())
def test_a_harvest_is_what_was_harvested_or_refused(harvested, tmp_path_factory, data):
    model, tokens, good = harvested
    folder = tmp_path_factory.getbasetemp() / "harvest"
    shutil.copytree(good, folder, dirs_exist_ok=True)
    path = folder / data.draw(
        st.sampled_from(["shards.json", "shards.json", "tokens.safetensors", "mlp.0.f16"])
    )
    kinds = other_bytes(path.read_bytes())
    if path.suffix == ".json":
        kinds |= other_json(json.loads(path.read_text()))
    path.write_bytes(data.draw(kinds))
    try:
        shards = harvest(model, tokens, layers=[0], folder=folder)
    except UserError as error:
        one_sentence(error)
    else:
        assert list(shards.widths) == [("mlp", 0)]
        expected = harvest(model, tokens, layers=[0], folder=good)
        assert np.array_equal(shards["mlp", 0], expected["mlp", 0])


@fuzz(per_second=25, seconds=1)
@given(st.data())
def test_a_harvest_of_the_cache_is_always_had(harvested, tmp_path_factory, data):
    model, tokens, good = harvested
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNING_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        shards = harvest(model, tokens, layers=[0])
        names = ["shards.json", "tokens.safetensors", "mlp.0.f16"]
        name = data.draw(st.sampled_from(names))
        (shards.folder / name).write_bytes(data.draw(other_bytes((good / name).read_bytes())))
        again = harvest(model, tokens, layers=[0])
    expected = harvest(model, tokens, layers=[0], folder=good)
    assert np.array_equal(again["mlp", 0], expected["mlp", 0])


def linear(**more) -> tuple[list[float], torch.Tensor]:
    """Losses and weights of a short training of a module."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    square = lambda m, x: m(x).square().mean()  # noqa: E731
    history = train_module(module, square, [X[:, :3]], steps=3, lr=0.1, **more)
    return history.losses, module.weight.detach()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> bytes:
    """What a training leaves that is killed in its last step."""

    def kill(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    path = tmp_path_factory.mktemp("module") / "training.safetensors"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("helpers.training.state.CHECKPOINT_SECONDS", 0.0)
        linear(checkpoint=path, on_step=kill)
    return path.read_bytes()


@fuzz(per_second=40, seconds=1)
@given(st.data())
def test_a_checkpoint_leads_to_the_same_training(checkpoint, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "training.safetensors"
    path.write_bytes(data.draw(other_bytes(checkpoint)))
    losses, weight = linear(checkpoint=path)
    assert losses == linear()[0] and torch.equal(weight, linear()[1])
