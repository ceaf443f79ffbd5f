"""The files of a run: written whole or not at all, and checked when they are read.

Everything a run or the cache keeps goes through here. A file appears under its name only when it
is complete (written beside it and renamed), so a killed run leaves nothing half-written, and what
is there can be trusted by the next one. Nothing is read or written as a pickle.
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

from safetensors import SafetensorError

from helpers.errors import UserError
from helpers.io.safe_text import visible

if TYPE_CHECKING:
    import torch  # imported where it is used: the pipeline's front door starts without it
from helpers.io.hashing import json_default

log = logging.getLogger(__name__)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, none in the user's share of it


CACHE_VARIABLE = "UNLEARNING_CACHE"


def cache_dir() -> Path:
    """Folder of artifacts shared by all runs: `$UNLEARNING_CACHE` or `~/.cache/llm-unlearning`.

    A relative one counts from where the first process of a run was started: it is made absolute in
    the environment, which later processes inherit.

    Raises:
        UserError: Neither it nor a home folder is named.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        os.environ[CACHE_VARIABLE] = given = os.path.abspath(os.path.expanduser(given))
        return Path(given)
    try:
        return Path.home() / ".cache" / "llm-unlearning"
    except RuntimeError:
        raise UserError(
            f"There is no home folder for the cache: set {CACHE_VARIABLE} to a folder."
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
        readable(path, (SafetensorError,)) as path,
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
def readable(path: str | Path, damaged: tuple[type[Exception], ...]) -> Iterator[Path]:
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
