"""Atomic writing and checked reading of the files of runs and of the cache.

A file gets its name only when it is complete: it is written beside its final place and renamed. A
killed run therefore leaves nothing half-written, and the next one can trust the files that it
finds. Nothing is read or written as a pickle.
"""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from helpers.errors import UserError
from helpers.io.safe_text import visible

if TYPE_CHECKING:
    import torch  # imported where it is used: the pipeline's front door starts without it
from helpers.io.hashing import json_default

log = logging.getLogger(__name__)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, none in the user's share of it


CACHE_VARIABLE = "UNLEARNING_CACHE"


def cache_dir() -> Path:
    """Return the cache's folder: `$UNLEARNING_CACHE` or `~/.cache/llm-unlearning`.

    A relative path counts from the working directory of a run's first process: it is made absolute
    in the environment, which later processes inherit.

    Raises:
        UserError: Neither the variable nor a home folder is set.
    """
    if folder := os.environ.get(CACHE_VARIABLE):
        os.environ[CACHE_VARIABLE] = folder = os.path.abspath(os.path.expanduser(folder))
        return Path(folder)
    try:
        return Path.home() / ".cache" / "llm-unlearning"
    except RuntimeError:
        raise UserError(
            f"There is no home folder for the cache: set {CACHE_VARIABLE} to a folder."
        ) from None


@contextlib.contextmanager
def atomic_path(path: str | Path, *, folder: bool = False, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path, which becomes `path` when the block ends without an error.

    Args:
        path: The final name. Parent folders are made.
        folder: Yield an empty folder instead of a file's name. If another process finished the
            same folder first, that one stays and ours is dropped.
        replace: Replace a folder that already has the name.

    Raises:
        UserError: The disk is full, or `path` cannot be written. `path` is then unchanged.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _writing_errors(path, (OSError,)):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(path))
            temporary = scratch / path.name
            if folder:
                temporary.mkdir()
        with _writing_errors(path):
            yield temporary
        with _writing_errors(path, (OSError,)):
            for file in temporary.rglob("*") if folder else [temporary]:
                _flush_to_disk(file)
            if folder and path.exists():
                if not replace:
                    return
                os.replace(path, scratch / "old")
            os.replace(temporary, path)


@contextlib.contextmanager
def _writing_errors(path: Path, kinds: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raise a `UserError` about `path` for a full disk, and for errors of `kinds`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error):
            raise UserError(
                f"The disk is full: {path} was not written; free some space and run again, "
                "finished steps are kept."
            ) from error
        if not isinstance(error, kinds):
            raise
        advice = "check the folder's permissions"
        if path.is_relative_to(cache_dir()):
            advice = f"the cache is {cache_dir()}; set {CACHE_VARIABLE} to a folder that can"
        raise UserError(
            f"{visible(path)} cannot be written ({getattr(error, 'strerror', error)}): "
            f"{visible(advice)}."
        ) from error


def _flush_to_disk(file: Path) -> None:
    """Write a file's content to the disk before its name, so that a power cut leaves it whole."""
    if file.is_file():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(beside: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside a path and delete it at the end.

    The process locks the folder as long as it lives. Folders for the same path without a lock were
    left by killed processes, in this or another container; they are deleted first.
    """
    beside = Path(beside)
    _remove_stale_temp(beside)
    while True:
        scratch = Path(tempfile.mkdtemp(".tmp", f".{beside.name}.", beside.parent))
        lock = os.open(scratch, os.O_RDONLY)
        # Without locks `_remove_stale_temp` deletes nothing either, so the folder is safe.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if scratch.exists():
            break
        os.close(lock)  # another process deleted it before we had the lock
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _remove_stale_temp(path: Path) -> None:
    """Delete temporary folders for `path` that killed processes left: nobody locks them."""
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # in use, deleted meanwhile, or without locks
            lock = os.open(scratch, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(scratch, ignore_errors=True)
            finally:
                os.close(lock)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NumPy numbers and paths are converted."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=1, default=json_default, ensure_ascii=False)
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    with readable(path, (ValueError, RecursionError)) as path:
        return json.loads(path.read_text(encoding="utf-8"))


def write_tensors(
    path: str | Path, tensors: "dict[str, torch.Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors with string metadata, atomically."""
    # Imported on use: it imports torch, and the pipeline's own commands start without it.
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata)
        _order_header(temporary)


def _order_header(path: Path) -> None:
    """Sort the header of a safetensors file, so that equal content makes equal bytes.

    The format's own writer orders the metadata differently each time.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", None)
        parts = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        text = json.dumps(parts | header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the format pads a header with spaces
            file.seek(8)
            file.write(text.ljust(size))


def read_tensors(path: str | Path) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Read tensors and metadata of a safetensors file.

    Raises:
        UserError: The file is missing or damaged, or holds numbers that are not finite.
    """
    with (
        readable(path, (SafetensorError,)) as path,
        safe_open(path, framework="pt") as file,
    ):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    check_finite(tensors, str(path))
    return tensors, metadata


def check_finite(tensors: "Mapping[str, torch.Tensor]", where: str) -> None:
    """Refuse numbers that are not finite, and complex numbers.

    Args:
        tensors: Name → tensor.
        where: The file that holds them, for the sentence.

    Raises:
        UserError: Names the first tensor that is not finite or is complex.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise UserError(f"{where}: '{visible(name)}' holds complex numbers; save real ones.")
        # A finite sum proves that all numbers are finite, at a tenth of the cost of a test of
        # each. A sum may overflow, so each number is tested where the sum is not finite.
        if tensor.is_floating_point() and tensor.numel():
            wide = tensor if tensor.dtype.itemsize > 2 else tensor.float()
            if not wide.sum().isfinite() and not wide.isfinite().all():
                raise UserError(
                    f"{where}: '{visible(name)}' holds numbers that are not finite (NaN or "
                    "infinite): make it again."
                )


@contextlib.contextmanager
def readable(path: str | Path, damaged: tuple[type[Exception], ...]) -> Iterator[Path]:
    """Yield the path of a file that is read in the block.

    Args:
        path: The file.
        damaged: Errors of the parser that mean that the file is damaged.

    Raises:
        UserError: The file is missing, or the block raised one of `damaged`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{visible(path)} is missing: run the step that makes it, or check the name."
        )
    try:
        yield path
    except damaged as error:
        cause = visible(error)[:200]
        raise UserError(
            f"{visible(path)} is damaged ({cause}): delete it and run again, only its step is "
            "repeated."
        ) from error
