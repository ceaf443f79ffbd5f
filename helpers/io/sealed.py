"""Files that are checked when they are read: tensors by a checksum, JSON against a model.

What is read here may have been damaged, or come from anybody. `DamagedError` says how a file is not
what it should be; who asked for it knows whether it can be made again by itself.
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

LARGEST = 1_000_000  # bytes of a JSON file: a hundred times those of an SAE with long lists
CHECKSUM = "checksum"  # of a file of tensors, among its own notes
ADVICE = re.compile(r"[:;] (?:make|save) ")  # what `check_finite` says after the cause

Checked = TypeVar("Checked", bound=BaseModel)


class DamagedError(UserError):
    """A file is missing, or not what was written there.

    Attributes:
        cause: What is wrong with which file, without advice and without a full stop.
    """

    def __init__(self, cause: str, advice: str = ""):
        """A sentence of what is wrong and, where it is known, what to do."""
        self.cause = cause
        super().__init__(f"{cause}: {advice}." if advice else f"{cause}.")


def cause_of(error: UserError) -> str:
    """What is wrong, without the advice that stands with it in some sentences."""
    return getattr(error, "cause", "") or ADVICE.split(str(error))[0].rstrip(".")


def read_checked(path: str | Path, model: type[Checked]) -> Checked:
    """A JSON file as what `model` says that it is.

    Raises:
        DamagedError: It is missing, not readable, too large, not JSON, or something else.
    """
    path = Path(path)
    shown = visible(path)
    try:
        if not path.is_file():
            raise DamagedError(f"{shown} is missing")
        if (size := path.stat().st_size) > LARGEST:
            raise DamagedError(f"{shown} has {size / 1e6:.1f} MB, and such a file has kilobytes")
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{shown} cannot be read ({error.strerror or error})") from None
    return parse_checked(content, model, shown)


def parse_checked(content: str | bytes, model: type[Checked], name: str) -> Checked:
    """JSON as what `model` says that it is; `name` says in the sentence what it is.

    Raises:
        DamagedError: It is not JSON, or something else; names the first field that is wrong.
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
    path: str | Path, *, foreign: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a safetensors file.

    Args:
        path: The file.
        foreign: Others write such files too: one without a checksum is taken as it is.

    Raises:
        DamagedError: It is missing, not such a file, not what was written, or holds numbers that
            are not finite.
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
        if error.__cause__:  # the parser's: it is not such a file
            raise DamagedError(f"{shown} is damaged ({visible(error.__cause__)})") from None
        raise DamagedError(cause_of(error)) from None  # not finite, or complex
    sealed = notes.pop(CHECKSUM, None)
    if sealed != _checksum(tensors, notes) and not (foreign and sealed is None):
        raise DamagedError(f"{shown} is damaged (its checksum differs)")
    return tensors, notes


def _checksum(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """CRC-32, which tells damage from what was written and costs nearly nothing."""
    value = zlib.crc32(json.dumps(dict(notes), sort_keys=True).encode())
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous()
        value = zlib.crc32(f"{name} {data.dtype} {tuple(data.shape)}".encode(), value)
        value = zlib.crc32(memoryview(data.reshape(-1).view(torch.uint8).numpy()), value)
    return f"{value:08x}"


def delete(path: Path) -> None:
    """Delete what is at `path`, a file or a folder; nothing there is good too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
