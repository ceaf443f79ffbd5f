"""Model folders that nobody tamed: a model with the numbers of its weights, or one sentence."""

import json
import shutil

import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, tiny_config, tiny_tokenizer
from transformers import AutoModelForCausalLM

from helpers.errors import UserError
from helpers.forward.scoring import answer_logprobs
from helpers.models import load_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    INDEX,
    WEIGHTS,
)
NUMBERS = (0, 1, -1, 2, 3, 4, 16, 64, 2**31, 2**63, 10**7, 10**12, 10**80, 0.5, 1e300)
WORDS = (
    "",
    "x",
    "llama",
    "gpt2",
    "mamba",
    "os.system",
    "../x",
    "/etc/passwd",
    "F32",
    "I8",
    "9" * 999,
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(WORDS)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    """A tiny model of every family, its weights in one file and in two."""
    found = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(tiny_config(family))
        for name, size in ((WEIGHTS, "1GB"), (INDEX, "12KB")):
            folder = tmp_path_factory.mktemp(family)
            module.save_pretrained(folder, max_shard_size=size)
            tiny_tokenizer().save_pretrained(folder)
            assert (folder / name).is_file()
            found[family, name] = folder
    return found


def other_json(data, value):
    """A JSON value with one thing changed, left out or added."""
    place, keys = value, [()]
    while isinstance(place, dict | list) and len(place):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            how = data.draw(st.sampled_from(("change", "change", "drop", "add")))
            if how == "drop":
                del place[key]
            elif how == "add" and isinstance(place, dict):
                place[data.draw(st.sampled_from(WORDS) | st.text(max_size=9))] = data.draw(PLAIN)
            else:
                place[key] = data.draw(PLAIN)
            return value
        place = place[key]
    return data.draw(PLAIN)


def other_bytes(data, raw: bytes) -> bytes:
    """Some bytes changed, put in or cut off."""
    at = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.sampled_from((at, at + 1, at + 3, len(raw))))
    return raw[:at] + data.draw(st.binary(max_size=3)) + raw[end:]


def damage(data, folder) -> None:
    """Change a file of a folder, in what it says or in its bytes."""
    there = [f for f in FILES if (folder / f).is_file()]
    file = folder / data.draw(st.sampled_from(there))
    raw = file.read_bytes()
    start = 8 if file.name == WEIGHTS else 0
    end = 8 + int.from_bytes(raw[:8], "little") if start else len(raw)
    try:
        told = json.loads(raw[start:end])
    except ValueError:  # damaged before
        told = None
    if told is None or data.draw(st.integers(0, 3)) == 0:
        file.write_bytes(other_bytes(data, raw))
        return
    told = json.dumps(other_json(data, told)).encode()
    before = len(told).to_bytes(8, "little") if start else b""
    file.write_bytes(before + told + raw[end:])


def load(folder):
    """The model, or None where one sentence says that it is none."""
    try:
        return load_model(str(folder))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return None


@fuzz(per_second=25, seconds=5)
@given(st.data())
def test_a_changed_folder_is_a_model_of_its_own_numbers_or_refused(folders, tmp_path_factory, data):
    source = data.draw(st.sampled_from(list(folders)))
    folder = tmp_path_factory.getbasetemp() / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[source], folder)
    for _ in range(data.draw(st.integers(1, 2))):
        damage(data, folder)
    model = load(folder)
    if model is None:
        return
    stored = [t for f in folder.glob("*.safetensors") for t in load_file(f).values()]
    for name, parameter in model._module.named_parameters():
        assert any(torch.equal(parameter, t.float()) for t in stored), name


def other_tensors(data, tensors: dict[str, torch.Tensor]) -> None:
    """Change one of the weights in place: its name, shape, kind of number, or numbers."""
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor, how = tensors[name], data.draw(st.integers(0, 4))
    if how == 0:
        del tensors[name]
    elif how == 1:
        tensors[data.draw(st.sampled_from(sorted(tensors)) | st.text(max_size=9))] = tensor.clone()
    elif how == 2:
        tensors[name] = tensor[..., : data.draw(st.integers(0, 3))].contiguous()
    elif how == 3:
        kinds = (torch.float16, torch.float64, torch.int8, torch.bool, torch.float8_e5m2)
        tensors[name] = tensor.to(data.draw(st.sampled_from(kinds)))
    else:
        tensor.view(-1)[0] = data.draw(st.sampled_from((torch.nan, -torch.inf, 3e38, 0.0)))


@fuzz(per_second=25, seconds=3)
@given(st.data())
def test_changed_weights_are_all_that_is_read_or_refused(folders, tmp_path_factory, data):
    family = data.draw(st.sampled_from(FAMILIES))
    folder = tmp_path_factory.getbasetemp() / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[family, WEIGHTS], folder)
    tensors = load_file(folder / WEIGHTS)
    other_tensors(data, tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    model = load(folder)
    if model is None:
        return
    parameters = list(model._module.parameters())
    assert all(p.isfinite().all() for p in parameters)
    for name, tensor in tensors.items():
        assert any(torch.equal(p, tensor.float()) for p in parameters), name
    model.tokenizer = tiny_tokenizer()
    assert answer_logprobs(model, ["w1 w2"], [" w3"]).shape == (1,)
