"""Files are written whole or not at all, and say so when they cannot be read."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.artifacts import (
    Run,
    atomic_path,
    cached_folder,
    cached_layers,
    cached_table,
    content_hash,
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)
from helpers.errors import UserError
from helpers.settings import Common

TABLE = pd.DataFrame({"country": ["France", "Japan"], "probability": [0.77, 0.70]})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"n": np.int64(3), "x": np.float32(0.5), "p": Path("a/b")})
    assert read_json(tmp_path / "a.json") == {"n": 3, "x": 0.5, "p": "a/b"}
    write_table(tmp_path / "deeper" / "a.parquet", TABLE)
    pd.testing.assert_frame_equal(read_table(tmp_path / "deeper" / "a.parquet"), TABLE)
    tensors = {"W": torch.randn(3, 4).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"rank": "1"})
    read, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"rank": "1"}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel has no /dev/full")
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with (
        pytest.raises(UserError, match=r"disk is full: .*a\.json"),
        atomic_path(path),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
    assert read_json(path) == {"old": 1}


def _write_and_die(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_swept_by_the_next_write(tmp_path):
    path = tmp_path / "a.json"
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=[path])
    process.start()
    process.join()
    assert not path.exists() and len(os.listdir(tmp_path)) == 1
    write_json(path, {})
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("name", "read"),
    [("a.json", read_json), ("a.parquet", read_table), ("a.safetensors", read_tensors)],
)
def test_a_damaged_or_missing_file_is_named(tmp_path, name, read):
    with pytest.raises(UserError, match=rf"{name} is missing"):
        read(tmp_path / name)
    for content in (b"", b"\xff\x00 not what it says", b'{"half": '):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is damaged .*delete it"):
            read(tmp_path / name)
    write_tensors(tmp_path / "whole", {"x": torch.ones(1000)})
    (tmp_path / name).write_bytes((tmp_path / "whole").read_bytes()[:-9])  # cut off
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        read(tmp_path / name)


def test_content_hash_tells_contents_apart(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    things = [
        (1,),
        ("1",),
        (1, 2),
        ([1, 2],),
        ("12",),
        ({"a": 1},),
        ({"a": 2},),
        (None,),
        (tmp_path / "a",),
        (tmp_path / "b",),
        (torch.zeros(4),),
        (torch.zeros(2, 2),),
        (torch.zeros(4, dtype=torch.float64),),
        (torch.zeros(4, dtype=torch.bfloat16),),
        (np.zeros(4, dtype=np.int32),),
        (torch.tensor([0.0, 0.0, 0.0, 1e-30]),),
    ]
    hashes = [content_hash(*thing) for thing in things]
    assert len(set(hashes)) == len(hashes)
    assert all(len(h) == 16 for h in hashes)
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash(torch.arange(6).reshape(2, 3).T) == content_hash(
        torch.tensor([[0, 3], [1, 4], [2, 5]])
    )


def test_a_cached_table_is_made_once_for_a_key_and_again_when_damaged(cache):
    calls = []

    def build() -> pd.DataFrame:
        calls.append(1)
        return TABLE.copy()

    for key in ({"model": "a"}, {"model": "a"}, {"model": "b"}):
        pd.testing.assert_frame_equal(cached_table("known", key, build), TABLE)
    assert len(calls) == 2
    for path in cache.rglob("*.parquet"):
        path.write_bytes(b"damaged")
    cached_table("known", {"model": "a"}, build)
    cached_table("known", {"model": "a"}, build)
    assert len(calls) == 3


def test_a_cached_folder_appears_only_when_it_is_complete(cache):
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached_folder("models", {"name": "a"}, fails)
    assert list((cache / "models").iterdir()) == []
    path = cached_folder("models", {"name": "a"}, lambda folder: (folder / "weights").touch())
    assert json.loads((path / "key.json").read_text()) == {"name": "a"}
    assert cached_folder("models", {"name": "a"}, fails) == path


def test_layers_that_the_cache_lacks_are_made_in_one_pass(cache):
    asked = []

    def build(missing):
        asked.append(missing)
        return ((i, {"x": torch.full((2,), float(i))}) for i in missing)

    def read(layers):
        files = cached_layers("keys", {"model": "a"}, layers, "x.safetensors", build)
        return {i: read_tensors(file)[0]["x"].tolist() for i, file in files.items()}

    assert read([0, 2]) == {0: [0, 0], 2: [2, 2]}
    assert read([2, 1, 3, 0]) == {2: [2, 2], 1: [1, 1], 3: [3, 3], 0: [0, 0]}
    assert read([3]) == {3: [3, 3]}
    assert asked == [[0, 2], [1, 3]]


def _make_slowly(log: Path) -> None:
    def build(folder: Path | None = None) -> pd.DataFrame:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return TABLE.copy()

    cached_folder("models", {"name": "a"}, build)
    cached_table("known", {"name": "a"}, build)


def test_processes_that_need_the_same_wait_for_the_one_that_makes_it(cache, tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_make_slowly, args=[tmp_path / "log"]) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text().split() == ["made", "made"]  # the folder and the table
    assert [path for path in cache.rglob(".*") if path.is_file()] == []


def test_the_manifest_records_what_was_made_from_what(tmp_path):
    run = Run(tmp_path, "01_keys_and_values", Common(seed=7, profile="smoke"))
    path = run.save("table", TABLE)
    run.save("numbers", {"n": 3})
    run.finish(model_hash="abc")
    manifest = read_json(tmp_path / "artifacts" / "01_keys_and_values" / "manifest.json")
    assert manifest["settings"]["subject"] == "France" and manifest["seeds"] == [7]
    assert manifest["profile"] == "smoke" and manifest["model_hash"] == "abc"
    assert manifest["inputs"] == {}
    assert manifest["outputs"] == {
        "table.parquet": content_hash(path),
        "numbers.json": content_hash(path.with_name("numbers.json")),
    }
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["commit"] and manifest["started"]
    later = Run(tmp_path, "02_propagation", Common())
    later.load("table", step="01_keys_and_values")
    later.finish()
    manifest = read_json(later.path("manifest.json"))
    assert manifest["inputs"] == {"01_keys_and_values/table.parquet": content_hash(path)}
    assert manifest["seconds"] >= 0 and manifest["peak_memory_mb"] > 0


def test_another_steps_artifact_is_loaded_or_the_command_that_makes_it_is_named(tmp_path):
    first = Run(tmp_path, "00_model_and_facts", Common())
    first.save("table", TABLE)
    second = Run(tmp_path, "01_keys_and_values", Common())
    pd.testing.assert_frame_equal(second.load("table", step="00_model_and_facts"), TABLE)
    with pytest.raises(UserError, match="make book"):
        second.load("other", step="00_model_and_facts")
