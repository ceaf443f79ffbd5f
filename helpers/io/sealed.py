"""Files that are checked when they are read: tensors by a checksum, JSON against a model.

A file may be damaged, or come from anybody. `DamagedError` says what is wrong with it; the caller
knows whether it can be made again.
"""

import json
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from helpers.errors import UserError
from helpers.io.files import read_tensors, write_tensors
from helpers.io.safe_text import visible

MAX_JSON_BYTES = 1_000_000  # a hundred times the size of an SAE's JSON file with long lists
CHECKSUM = "checksum"  # name of the checksum in the notes of a file of tensors
ADVICE = re.compile(r"[:;] (?:make|save) ")  # separates cause and advice of `check_finite`

Checked = TypeVar("Checked", bound=BaseModel)


class DamagedError(UserError):
    """A file that is missing, or differs from what was written there.

    Attributes:
        cause: What is wrong with which file, without advice and without a full stop.
    """

    def __init__(self, cause: str, advice: str = ""):
        """Make the sentence.

        Args:
            cause: What is wrong with which file.
            advice: What to do, where it is known.
        """
        self.cause = cause
        super().__init__(f"{cause}: {advice}." if advice else f"{cause}.")


def cause_of(error: UserError) -> str:
    """Return the cause that an error's sentence gives, without advice and full stop."""
    return getattr(error, "cause", "") or ADVICE.split(str(error))[0].rstrip(".")


def read_checked(path: str | Path, model: type[Checked]) -> Checked:
    """Read a JSON file and check it against a pydantic model.

    Raises:
        DamagedError: The file is missing, unreadable, too large, not JSON, or does not fit.
    """
    path = Path(path)
    shown = visible(path)
    try:
        if not path.is_file():
            raise DamagedError(f"{shown} is missing")
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise DamagedError(f"{shown} has {size / 1e6:.1f} MB, and such a file has kilobytes")
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{shown} cannot be read ({error.strerror or error})") from None
    return parse_checked(content, model, shown)


def parse_checked(content: str | bytes, model: type[Checked], name: str) -> Checked:
    """Parse JSON and check it against a pydantic model.

    Args:
        content: The JSON.
        model: The pydantic model.
        name: What the content is, for the sentence.

    Raises:
        DamagedError: The content is not JSON or does not fit; names the first wrong field.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        where = f"'{field}': " if field else ""
        raise DamagedError(f"{name} is damaged ({visible(where + first['msg'])[:300]})") from None


def write_sealed(
    path: str | Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Write tensors and notes as safetensors, with a checksum of both, atomically."""
    tensors = {name: t.detach().contiguous() for name, t in tensors.items()}
    notes = dict(notes or {})
    write_tensors(path, tensors, notes | {CHECKSUM: _checksum(tensors, notes)})


def read_sealed(
    path: str | Path, *, allow_unsealed: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and notes of a safetensors file and compare its checksum.

    Args:
        path: The file.
        allow_unsealed: Accept a file without a checksum, as other programs write it.

    Raises:
        DamagedError: The file is missing, not safetensors, differs from what was written, or holds
            numbers that are not finite.
    """
    shown = visible(path)
    try:
        if not Path(path).is_file():
            raise DamagedError(f"{shown} is missing")
        tensors, notes = read_tensors(path)
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{shown} cannot be read ({error.strerror or error})") from None
    except UserError as error:
        if error.__cause__:  # from the parser: this is no safetensors file
            raise DamagedError(f"{shown} is damaged ({visible(error.__cause__)})") from None
        raise DamagedError(cause_of(error)) from None  # not finite, or complex
    sealed = notes.pop(CHECKSUM, None)
    if sealed != _checksum(tensors, notes) and not (allow_unsealed and sealed is None):
        raise DamagedError(f"{shown} is damaged (its checksum differs)")
    return tensors, notes


def _checksum(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Compute the CRC-32 of tensors and notes: it detects damage and costs nearly nothing."""
    value = zlib.crc32(json.dumps(dict(notes), sort_keys=True).encode())
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous()
        value = zlib.crc32(f"{name} {data.dtype} {tuple(data.shape)}".encode(), value)
        value = zlib.crc32(memoryview(data.reshape(-1).view(torch.uint8).numpy()), value)
    return f"{value:08x}"


def delete(path: Path) -> None:
    """Delete the file or folder at `path`, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
