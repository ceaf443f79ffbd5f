"""Hashes of values, files and folders, for the keys of caches and for manifests."""

import hashlib
import json
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


def json_default(value: Any) -> Any:
    """Convert NumPy values, ranges and paths to types that JSON can store."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, range):
        return list(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def content_hash(*values: Any) -> str:
    """Hash the contents of the values.

    A `Path` counts as the bytes of its file, a tensor or array as its dtype, shape and data, and
    everything else as canonical JSON.

    Returns:
        The first 16 hexadecimal digits of SHA-256.
    """
    digest = hashlib.sha256()
    torch = sys.modules.get("torch")  # without torch there are no tensors
    for value in values:
        if torch is not None and isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous()
            digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
            digest.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Path):
            with value.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=json_default).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def folder_hash(folder: str | Path) -> str:
    """Hash the files of a folder, in the order of their names, by `content_hash`."""
    return content_hash(*sorted(Path(folder).glob("*")))


def file_hash(path: Path) -> str:
    """Hash a file by `content_hash`; it is read once as long as it is not written again."""
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
        Name relative to the folder → `content_hash` of the file.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: content_hash(path) for name, path in names.items() if name not in without}
