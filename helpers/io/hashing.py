"""Hashes of contents: names of what depends on them."""

import hashlib
import json
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    pass  # imported where it is used: the pipeline's front door starts without it


def json_default(value: Any) -> Any:
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
            digest.update(json.dumps(thing, sort_keys=True, default=json_default).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def folder_hash(folder: str | Path) -> str:
    """`content_hash` of the files of a folder, in the order of their names."""
    return content_hash(*sorted(Path(folder).glob("*")))


def file_hash(path: Path) -> str:
    """`content_hash` of a file, reckoned once as long as it is not written again."""
    stat = path.stat()
    return _hash_of(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _hash_of(path: Path, *_: int) -> str:
    return content_hash(path)


def file_hashes(folder: Path, *, without: Collection[str] = ()) -> dict[str, str]:
    """Hash every file of a folder.

    Args:
        folder: The folder.
        without: Names of files that are left out.

    Returns:
        The file's name, relative to the folder → `content_hash` of it.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: content_hash(path) for name, path in names.items() if name not in without}
