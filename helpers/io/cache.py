"""What all runs share: tables, folders and tensors, kept by what they depend on."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from helpers.errors import UserError
from helpers.io.safe_text import visible

if TYPE_CHECKING:
    import torch  # imported where it is used: the pipeline's front door starts without it
from helpers.io.files import atomic_path, cache_dir, log, read_json, write_json, write_tensors
from helpers.io.hashing import content_hash, file_hash, file_hashes, json_default
from helpers.io.parquet import read_table, write_table

RECORD = "files.json"  # of a folder in the cache: the hashes of its files


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
    with file_lock(path):
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
        with file_lock(cache_dir() / kind / content_hash(key)):
            if missing := [i for i, folder in folders.items() if not _whole(folder)]:
                for i, found in build(missing):
                    cached_folder(kind, keys[i], lambda f, x=found: write_tensors(f / name, x))
    return {i: folder / name for i, folder in folders.items()}


def _whole(folder: Path) -> bool:
    """Whether a folder of the cache has the files that were written, byte for byte."""
    with contextlib.suppress(UserError, AttributeError, OSError):
        recorded = read_json(folder / RECORD)
        same = [file_hash(folder / name) == hash_ for name, hash_ in recorded.items()]
        return bool(same) and all(same)
    return False


def _clear(path: Path) -> None:
    """Take what is damaged away from the cache, so that it can be made again."""
    if path.exists():
        log.warning("%s is damaged or of an older version: it is made again.", visible(path))
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
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
