"""Patches that nobody tamed: the edit that was saved, or one sentence, and the model as it was."""

import json

import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_tokenizer
from transformers import AutoModelForCausalLM

from helpers.errors import UserError
from helpers.io.files import read_tensors
from helpers.io.hashing import content_hash
from helpers.methods import (
    Change,
    Edit,
    HookIntervention,
    WeightEdit,
    active_edits,
    load_unlearning,
)
from helpers.methods.change import tensors_hash
from helpers.methods.fitting.fit_values import append_units
from helpers.methods.fitting.units import GatedUnits
from helpers.methods.inference.neuron_adjust import MOMENTS
from helpers.models import architecture_of, load_model, model_hash
from helpers.sae import SAEConfig, build

JSON = ("pair", "hyperparameters", "notes", "settings", "versions")
DTYPES = (torch.float64, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.int8)
NUMBERS = (0, 1, -1, 2, 2**31, 10**9, 10**80, 1e300, 1e-300)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
TEXTS = st.text(max_size=20) | st.sampled_from(["", "x" * 2000, "9" * 5000, "[" * 9999, "nan", "{"])
ENDS = ("left", "right", "dense", "appended0", "appended1", "appended-1", "appended9", "zzz", "")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("llama")).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    found = load_model(str(folder))
    found.tokenizer = tiny_tokenizer()
    return found


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> list[tuple[Edit, bytes]]:
    """An edit of every kind, and its file."""
    draw = torch.Generator().manual_seed(0)
    mlp = architecture_of(model).layers[1].mlp
    factors = {"left": torch.randn(16, 2, generator=draw), "right": torch.randn(2, 24)}
    low = WeightEdit.of(
        model._module, {mlp.out_name: Change(**factors)}, notes={"relative_cost": 0.5}
    )
    dense = WeightEdit.of(model._module, {mlp.in_name: Change(dense=torch.randn(24, 16))})
    d = GatedUnits(torch.randn(1, 16, generator=draw), torch.tensor([0.1]), torch.ones(1))
    neurons = append_units(model, {1: d}, {1: torch.randn(1, 16, generator=draw)})
    sae = build(SAEConfig("topk", 16, 20, k=4, site="mlp_in", layer=1))
    one = {"cfg": sae.cfg.to_dict(), "latents": [3, 4], "values": [-1.0, -2.0]}
    clamp = HookIntervention(
        "clamp", {"share": 0.0, "saes": [one]}, {f"0.{k}": v for k, v in sae.tensors().items()}
    )
    who = HookIntervention(
        "who_is", {"alpha": 2.0}, {f"{mlp.out_name}.{k}": v for k, v in factors.items()}
    )
    asking = HookIntervention("in_context", {"text": "w1 w2"}, notes={"request": "w1 w2"})
    moments = {f"1.{name}": torch.ones(2) for name in MOMENTS}
    settings = {"layers": [{"layer": 1, "neurons": [2, 9]}]}
    shift = HookIntervention("neuron_adjust", settings, moments)
    box = HookIntervention(
        "key_space_detection",
        {"layer": 1, "radius": 3.0},
        {"mean": torch.zeros(16), "std": torch.ones(16)},
    )
    pair = {"subject": "w1", "target": "w2", "relation": "own"}
    found, path = [], tmp_path_factory.mktemp("patches") / "patch.safetensors"
    for k, delta in enumerate((low, dense, neurons, clamp, who, asking, shift, box)):
        about = [pair] * 2 if k % 2 else pair
        made = Edit("made", about, delta, {"layers": [1]}, k, 0.25, model_hash(model))
        made.save(path)
        found.append((made, path.read_bytes()))
    return found


def same(one: Edit, two: Edit) -> bool:
    """Whether everything of two edits is the same, bit by bit."""
    plain = [{**vars(x), "delta": x.delta.notes, "how": vars(x.delta)} for x in (one, two)]
    for x in plain:
        x["how"] = {k: v for k, v in x["how"].items() if k not in ("changes", "parts")}
    return repr(plain[0]) == repr(plain[1]) and one.delta.same_as(two.delta)


def read(path) -> Edit | None:
    """The edit, or None where one sentence says that it is none."""
    try:
        return load_unlearning(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
        return None


@fuzz(per_second=150, seconds=3)
@given(st.data())
def test_a_file_with_other_bytes_is_the_edit_that_was_saved_or_refused(
    saved, tmp_path_factory, data
):
    made, content = saved[data.draw(st.integers(0, len(saved) - 1))]
    content, header = bytearray(content), 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, data.draw(st.sampled_from([7, header, len(content)]))))
        end = at + data.draw(st.integers(0, 3))
        content[at:end] = data.draw(
            st.binary(max_size=3) | st.binary(min_size=end - at, max_size=end - at)
        )
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    path.write_bytes(content)
    found = read(path)
    assert found is None or same(found, made)


def other_metadata(data, about: dict[str, str]) -> None:
    """Change some of a patch's metadata in place: fields, or what stands in their JSON."""
    every = sorted({*about, "more", "settings", "touched_hash"})
    for name in data.draw(st.lists(st.sampled_from(every), max_size=2, unique=True)):
        if name not in JSON or data.draw(st.integers(0, 3)) == 0:
            value = data.draw(st.none() | TEXTS)
        else:
            place = value = json.loads(about.get(name, "{}"))
            while isinstance(place, dict | list) and len(place):
                keys = list(place) if isinstance(place, dict) else range(len(place))
                key = data.draw(st.sampled_from(keys))
                if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
                    place[key] = data.draw(PLAIN)
                    break
                place = place[key]
            value = json.dumps(value)
        about.pop(name, None)
        if value is not None:
            about[name] = value


def other_tensors(data, tensors: dict[str, torch.Tensor]) -> None:
    """Change some of a patch's tensors in place: names, shapes, kinds of numbers, numbers."""
    for _ in range(data.draw(st.integers(0, 2))):
        if not tensors:
            return
        name = data.draw(st.sampled_from(list(tensors)))
        tensor, kind = tensors.pop(name), data.draw(st.integers(0, 5))
        if kind == 0:
            name = f"{name.rpartition('.')[0]}.{data.draw(st.sampled_from(ENDS))}"
        elif kind == 1:
            name = data.draw(st.text(max_size=9) | st.just(name.replace("1", "0")))
        elif kind == 2:
            shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 16, 20, 24, 25]), max_size=3))
            tensor = torch.ones(shape)
        elif kind == 3:
            tensor = tensor.abs().to(data.draw(st.sampled_from(DTYPES)))
        elif kind == 4 and tensor.dtype == torch.float32:
            tensor = tensor.clone()
            tensor.view(-1)[:1] = data.draw(st.sampled_from([float("nan"), 1e38, 3e38, 1e15, 0.0]))
        else:
            continue
        tensors[name] = tensor.contiguous()


@fuzz(per_second=75, seconds=3)
@given(st.data())
def test_a_file_that_says_something_else_is_read_or_refused_and_the_model_comes_back(
    model, saved, tmp_path_factory, data
):
    """With checksums that fit, so that what is behind them is reached; applied where it is read."""
    path = tmp_path_factory.getbasetemp() / "other.safetensors"
    path.write_bytes(saved[data.draw(st.integers(0, len(saved) - 1))][1])
    tensors, about = read_tensors(path)
    tensors, about = dict(sorted(tensors.items())), dict(sorted(about.items()))  # a file has none
    del about["checksum"]
    other_metadata(data, about)
    other_tensors(data, tensors)
    if data.draw(st.integers(0, 3)):
        about["content"] = tensors_hash(tensors)
    if data.draw(st.booleans()):
        about["format"] = "llm-unlearning/1"
    else:
        about["checksum"] = content_hash(about)
    try:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, about)
    except (UnicodeError, ValueError):  # what has no place in a file at all
        return
    if (found := read(path)) is None:
        return
    before = model_hash(model)
    try:
        with found.applied(model):
            model._module(torch.tensor([[2, 7, 9]]))
    except UserError as error:
        assert "\n" not in str(error)
    assert model_hash(model) == before and active_edits(model) == []
    found.save(path)
    assert same(load_unlearning(path), found)
