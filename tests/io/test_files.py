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

from helpers.book.settings import Common
from helpers.errors import UserError
from helpers.io.cache import cached_folder, cached_layers, cached_table, file_lock
from helpers.io.files import (
    atomic_path,
    cache_dir,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from helpers.io.hashing import content_hash
from helpers.io.parquet import read_table, write_table
from helpers.io.run import Run

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
    assert [p for p in (cache / "models").iterdir() if p.is_dir()] == []
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
    assert [path for path in cache.rglob(".*") if path.is_dir()] == []  # nothing half-written


def test_the_manifest_records_what_was_made_from_what(tmp_path):
    run = Run(tmp_path, "01_keys_and_values", Common(seed=7, profile="smoke"))
    run.save("table", TABLE)
    run.save("numbers", {"n": 3})
    run.finish(model_hash="abc")
    manifest = read_json(tmp_path / "artifacts" / "01_keys_and_values" / "manifest.json")
    assert manifest["settings"]["subject"] == "France" and manifest["seeds"] == [7]
    assert manifest["profile"] == "smoke" and manifest["model_hash"] == "abc"
    assert manifest["inputs"] == {}
    path = run.path("table.parquet")
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


FIRST, SECOND = "00_model_and_facts", "01_keys_and_values"


def finished(folder: Path, table: pd.DataFrame = TABLE) -> Run:
    """The first step of a run folder, done."""
    run = Run(folder, FIRST, Common())
    run.save("table", table)
    run.save("numbers", {"n": len(table)})
    run.finish()
    return run


def test_another_steps_artifact_is_loaded_or_the_command_that_makes_it_is_named(tmp_path):
    second = Run(tmp_path, SECOND, Common())
    with pytest.raises(UserError, match=r"is missing.*make book"):
        second.load("table", step=FIRST)
    finished(tmp_path)
    pd.testing.assert_frame_equal(second.load("table", step=FIRST), TABLE)
    assert second.load("manifest", step=FIRST)["step"] == FIRST
    with pytest.raises(UserError, match="make book"):
        second.load("other", step=FIRST)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"cut"])
def test_an_artifact_that_is_not_what_was_recorded_is_not_read(tmp_path, content):
    path = finished(tmp_path).path("numbers.json")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"numbers\.json is .*run the same 'make' command again"):
        Run(tmp_path, SECOND, Common()).load("numbers", step=FIRST)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"outputs": 3, "inputs": {}}'])
def test_artifacts_without_a_manifest_that_vouches_for_them_are_not_read(tmp_path, content):
    finished(tmp_path).path("manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="is missing: run notebooks/00_model_and_facts"):
        Run(tmp_path, SECOND, Common()).load("numbers", step=FIRST)


def test_a_step_that_fails_leaves_the_last_artifacts(tmp_path):
    path = finished(tmp_path).path("numbers.json")
    again = Run(tmp_path, FIRST, Common(seed=1))
    again.save("numbers", {"n": "other"})
    assert read_json(path) == {"n": 2}
    del again  # its kernel ended
    assert read_json(path) == {"n": 2} and os.listdir(tmp_path / "artifacts") == [FIRST]
    again = Run(tmp_path, FIRST, Common(seed=1))
    again.save("numbers", {"n": "other"})
    again.finish()
    assert read_json(path) == {"n": "other"}
    assert not path.with_name("table.parquet").exists()  # what the step no longer makes


def test_the_last_cell_of_a_step_may_be_run_twice(tmp_path):
    run = finished(tmp_path)
    run.save("numbers", {"n": 9})
    manifest = run.finish()
    assert sorted(manifest["outputs"]) == ["numbers.json", "table.parquet"]
    assert Run(tmp_path, SECOND, Common()).load("numbers", step=FIRST) == {"n": 9}


def test_equal_runs_leave_equal_artifacts_and_hashes(tmp_path):
    """What the clock decided stands in the manifest, and in nothing that is hashed."""
    found = []
    for seconds, place in ((1.5, tmp_path / "one"), (2.5, tmp_path / "two")):
        table = TABLE.copy()
        table.attrs["seconds"] = seconds  # as tables of the cache have
        run = Run(place, FIRST, Common())
        run.save("table", table)
        manifest = run.finish(times={"seconds": seconds})
        assert manifest["times"] == {"seconds": seconds}
        later = Run(place, SECOND, Common())
        later.load("manifest", step=FIRST)
        found.append((manifest["outputs"], later.finish()["inputs"]))
    assert found[0] == found[1]


def damages(content: bytes) -> list[bytes]:
    """A file's content damaged in every way that was seen: bytes changed, cut, emptied, other."""
    rng = np.random.default_rng(0)
    found = [b"", content[:-9], content[: len(content) // 2], b"text", rng.bytes(500), content * 2]
    for _ in range(60):
        changed = bytearray(content)
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            changed[at] ^= int(rng.integers(1, 256))
        found.append(bytes(changed))
    return found


def test_a_cached_table_that_is_damaged_in_any_way_is_made_again(cache, caplog):
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"a": rng.normal(size=200), "b": rng.integers(9, size=200), "c": "x"})
    made = []

    def build() -> pd.DataFrame:
        made.append(1)
        return table.copy()

    def get() -> pd.DataFrame:
        return cached_table("known", {"model": "a"}, build)

    get()
    (path,) = cache.rglob("*.parquet")
    whole = path.read_bytes()
    for n, content in enumerate(damages(whole), start=2):
        path.write_bytes(content)
        caplog.clear()
        pd.testing.assert_frame_equal(get(), table)
        assert len(made) == n
        assert [r.message for r in caplog.records] == [
            f"{path} is damaged or of an older version: it is made again."
        ]
    write_table(path, TABLE)  # of other columns
    pd.testing.assert_frame_equal(get(), table)
    path.unlink()
    path.mkdir()
    (path / "file").touch()
    pd.testing.assert_frame_equal(get(), table)
    for record in (b"", b"[]", b"3", b'{"key": {}}', None):
        path.with_suffix(".json").unlink()
        if record is not None:
            path.with_suffix(".json").write_bytes(record)
        pd.testing.assert_frame_equal(get(), table)
    before = len(made)
    get()
    assert len(made) == before


def test_a_damaged_table_is_one_sentence(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, pd.DataFrame({"a": np.arange(200), "b": [f"w{i}" for i in range(200)]}))
    for content in damages(path.read_bytes()):
        path.write_bytes(content)
        try:
            read_table(path)
        except UserError as error:
            assert "\n" not in str(error) and "is damaged" in str(error)


@pytest.mark.parametrize("damage", ["changed", "gone", "file"])
def test_a_cached_folder_or_layer_that_is_damaged_is_made_again(cache, caplog, damage):
    made = []

    def build(missing):
        made.append(missing)
        return ((i, {"x": torch.full((2,), float(i))}) for i in missing)

    def get():
        return cached_layers("keys", {"model": "a"}, [0, 1], "x.safetensors", build)

    files = get()
    if damage == "changed":  # one byte of a number, in place
        content = bytearray(files[1].read_bytes())
        content[-1] ^= 1
        files[1].write_bytes(content)
    else:
        files[1].unlink()
    if damage == "file":
        for path in files[1].parent.iterdir():
            path.unlink()
        files[1].parent.rmdir()
        files[1].parent.write_text("a file in the folder's place")
    assert read_tensors(get()[1])[0]["x"].tolist() == [1, 1]
    assert made == [[0, 1], [1]] and "made again" in caplog.text
    get()
    assert len(made) == 2


def _holds(path: Path, ready, stop) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        ready.set()
        stop.wait(30)


def test_what_a_living_process_writes_is_not_swept(tmp_path, monkeypatch):
    """Whatever its host and number: two containers may have the same."""
    fork = multiprocessing.get_context("fork")
    ready, stop = fork.Event(), fork.Event()
    process = fork.Process(target=_holds, args=[tmp_path / "a.json", ready, stop])
    process.start()
    assert ready.wait(30)
    write_json(tmp_path / "a.json", {})
    assert len(os.listdir(tmp_path)) == 2
    stop.set()
    process.join(30)
    assert process.exitcode == 0 and os.listdir(tmp_path) == ["a.json"]


def _counts(path: Path, log: Path) -> None:
    for _ in range(20):
        with file_lock(path):
            with log.open("a") as file:
                file.write("in ")
            time.sleep(0.001)
            with log.open("a") as file:
                file.write("out\n")


def test_only_one_process_is_inside_of_alone(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_counts, args=[tmp_path / "x", tmp_path / "log"]) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (tmp_path / "log").read_text() == "in out\n" * 80


def test_a_relative_cache_is_one_folder_for_all_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNING_CACHE", "mycache")
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / "mycache"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cache_dir() == tmp_path / "mycache"
    assert os.environ["UNLEARNING_CACHE"] == str(tmp_path / "mycache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written .*file/cache.*set UNLEARNING_CACHE"):
        cached_table("known", {}, TABLE.copy)
    with pytest.raises(UserError, match=r"cannot be written .*check the folder's permissions"):
        write_json(tmp_path / "file" / "a.json", {})


def test_equal_tensors_and_notes_are_equal_bytes(tmp_path):
    """The format's own writer puts notes in another order each time."""
    notes = {f"note {i}": 'ü "x"\n' * i for i in range(8)}
    tensors = {"b": torch.ones(3, 2), "a": torch.arange(4), "日": torch.zeros(1)}
    files = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for file in files:
        write_tensors(file, tensors, notes)
    assert len({file.read_bytes() for file in files}) == 1
    back, told = read_tensors(files[0])
    assert told == notes and all(torch.equal(back[k], tensors[k]) for k in tensors)
