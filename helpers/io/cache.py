"""The cache that all runs share: tables, folders and tensors under a hash of their key."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock

from helpers.errors import UserError
from helpers.io.safe_text import visible

if TYPE_CHECKING:
    import torch  # imported where it is used: the pipeline's front door starts without it
from helpers.io.files import atomic_path, cache_dir, log, read_json, write_json, write_tensors
from helpers.io.hashing import content_hash, file_hash, file_hashes, json_default
from helpers.io.parquet import read_table, write_table

RECORD = "files.json"  # of a folder in the cache: the hashes of its files


def cached_table(kind: str, key: dict, build: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return the table of a key, from the cache or newly built.

    A cached table is used only if its file is byte for byte the one that was written.

    Args:
        kind: Folder of the cache; names the sort of table.
        key: Everything that the table depends on: hashes of the model, of templates, sizes. It is
            stored beside the table, for people who look into the cache.
        build: Computes the table. The wall-clock seconds that it takes are stored in
            `table.attrs["seconds"]`.
    """
    path = cache_dir() / kind / f"{content_hash(key)}.parquet"
    record = path.with_suffix(".json")  # written last: the key, and the table's hash

    def read() -> pd.DataFrame | None:
        with contextlib.suppress(UserError, TypeError, KeyError):
            if path.is_file() and read_json(record)["table"] == file_hash(path):
                return read_table(path)
        return None

    if (table := read()) is not None:
        return table
    with file_lock(path):
        if (table := read()) is not None:
            return table
        _clear(path)
        started = time.perf_counter()
        table = build()
        table.attrs["seconds"] = time.perf_counter() - started
        write_table(path, table)
        write_json(record, {"key": key, "table": file_hash(path)})
    return table


def cached_folder(kind: str, key: dict, build: Callable[[Path], None]) -> Path:
    """Return the folder of a key, from the cache or newly filled.

    A cached folder is used only if its files are byte for byte those that were written.

    Args:
        kind: Folder of the cache; names the sort of content.
        key: Everything that the content depends on; stored in the folder as `key.json`.
        build: Writes the content into the empty folder that it is given.
    """
    path = cache_dir() / kind / content_hash(key)
    if _whole(path):
        return path
    with file_lock(path):
        if not _whole(path):
            _clear(path)
            with atomic_path(path, folder=True) as temporary:
                build(temporary)
                (temporary / "key.json").write_text(
                    json.dumps(key, indent=1, default=json_default), encoding="utf-8"
                )
                write_json(temporary / RECORD, file_hashes(temporary))
    return path


def cached_layers(
    kind: str,
    key: dict,
    layers: Iterable[int],
    name: str,
    build: "Callable[[list[int]], Iterable[tuple[int, dict[str, torch.Tensor]]]]",
) -> dict[int, Path]:
    """Return a file of tensors for each layer; missing layers are computed in one pass.

    Args:
        kind: Folder of the cache; names the sort of tensors.
        key: Everything that all layers depend on. Each layer has its own `cached_folder`, whose
            key is this one with the layer added.
        layers: Indices of the layers.
        name: Name of the file in each layer's folder.
        build: Called with the missing layers; yields each layer with its tensors.

    Returns:
        Layer → path of its file.
    """
    keys = {i: {**key, "layer": i} for i in layers}
    folders = {i: cache_dir() / kind / content_hash(k) for i, k in keys.items()}
    if not all(map(_whole, folders.values())):
        with file_lock(cache_dir() / kind / content_hash(key)):
            if missing := [i for i, folder in folders.items() if not _whole(folder)]:
                for i, tensors in build(missing):

                    def write(folder: Path, tensors: dict[str, Any] = tensors) -> None:
                        write_tensors(folder / name, tensors)

                    cached_folder(kind, keys[i], write)
    return {i: folder / name for i, folder in folders.items()}


def _whole(folder: Path) -> bool:
    """Tell whether a folder of the cache holds the files that were written, byte for byte."""
    with contextlib.suppress(UserError, AttributeError, OSError):
        recorded = read_json(folder / RECORD)
        same = [file_hash(folder / name) == hash_ for name, hash_ in recorded.items()]
        return bool(same) and all(same)
    return False


def _clear(path: Path) -> None:
    """Delete a damaged entry of the cache, so that it can be made again."""
    if path.exists():
        log.warning("%s is damaged or of an older version: it is made again.", visible(path))
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Let one process at a time into this block for `path`; the others wait.

    Whoever enters checks again whether `path` exists, since another process may have made it.
    Where the file system has no locks every process makes `path`. That costs only time, because
    files are written whole. The lock's file is never deleted: a process that waits would hold the
    deleted file while a third one locks a new file of the same name.
    """
    lock = FileLock(path.parent / f".{path.name}.lock")
    with contextlib.suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
