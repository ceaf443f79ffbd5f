"""Harvested activations on disk: a folder with one raw float16 file for each (site, layer).

Beside them lie the tokens, and `shards.json`, which says what model the activations are of, how
many sequences are complete, and the files' checksums.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nnsight import LanguageModel
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.sites import SITES
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, read_checked, read_sealed
from helpers.io.shared_folder import ReadLock
from helpers.models import model_hash

INDEX, TOKENS = "shards.json", "tokens.safetensors"
BLOCK = 2**24  # bytes that are read at a time for a checksum

Count = Annotated[int, Field(ge=0, lt=2**40)]


class ShardIndex(BaseModel):
    """The content of `shards.json`.

    Attributes:
        model_hash: Hash of the model.
        tokenizer_hash: Hash of its tokenizer's vocabulary.
        tokens: `content_hash` of the tokens and of the mask that selects them.
        keys: (site, layer) of each file.
        widths: Width of each file's rows; empty before the first pass.
        checksums: CRC-32 of each file's complete part.
        done: Number of sequences that are complete in all files.
    """

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model_hash: str
    tokenizer_hash: str
    tokens: str
    keys: list[tuple[str, Count]]
    widths: list[Count] = []
    checksums: list[Count] = []
    done: Count = 0

    @property
    def identity(self) -> dict:
        """The inputs of the harvest, without its progress."""
        return self.model_dump(include={"model_hash", "tokenizer_hash", "tokens", "keys"})

    def width_by_key(self) -> dict[tuple[str, int], int]:
        """Return the width of each (site, layer)."""
        return dict(zip(self.keys, self.widths, strict=True))


@dataclass(frozen=True)
class Shards:
    """Activations on disk, as they were harvested.

    Attributes:
        folder: The folder that holds them.
        model_hash: Hash of the model that they are of.
        tokenizer_hash: Hash of its tokenizer's vocabulary.
        tokens: (sequences, t), the tokens that the model read.
        rows: (n,), the token of each row as an index into `tokens.flatten()`.
        widths: Width of each (site, layer).
        reading: Lock that keeps other processes from deleting the folder as long as it lives.
    """

    folder: Path
    model_hash: str
    tokenizer_hash: str
    tokens: Int[Tensor, "sequences t"]
    rows: Int[np.ndarray, " n"]
    widths: dict[tuple[str, int], int]
    reading: ReadLock | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, key: tuple[str, int]) -> Float[np.ndarray, "n width"]:
        """Return the activations of one (site, layer), float16, mapped from disk.

        Raises:
            UserError: They were not harvested, or the file is not of the size it should be.
        """
        site, layer = key
        if key not in self.widths:
            harvested = ", ".join(f"{s} {i}" for s, i in self.widths)
            raise UserError(
                f"Site {site} of layer {layer} was not harvested; there are {harvested}."
            )
        path = shard_file(self.folder, key)
        shape = (len(self), self.widths[key])
        if not path.is_file() or path.stat().st_size != 2 * shape[0] * shape[1]:
            raise UserError(unreadable(self.folder, f"{path.name} is truncated or missing"))
        return np.memmap(path, np.float16, "r", shape=shape)

    def __len__(self) -> int:
        """Return the number of rows, the same for every site and layer."""
        return len(self.rows)

    def source(self, row: int) -> tuple[int, int]:
        """Return (sequence, position) of the token that a row belongs to."""
        return divmod(int(self.rows[row]), self.tokens.shape[1])

    def check(self, model: LanguageModel) -> None:
        """Refuse activations of another model or tokenizer.

        Raises:
            UserError: The activations are of another model or tokenizer.
        """
        check_same_model(
            self.folder,
            {"model_hash": self.model_hash, "tokenizer_hash": self.tokenizer_hash},
            {"model_hash": model_hash(model), "tokenizer_hash": tokenizer_hash(model)},
        )


def open_shards(
    folder: Path, index: ShardIndex, tokens: Int[Tensor, "sequences t"], keep: Tensor
) -> Shards:
    """Open a complete harvest for reading and lock its folder against deletion."""
    rows = keep.flatten().nonzero()[:, 0].numpy()
    hashes = index.model_hash, index.tokenizer_hash
    return Shards(folder, *hashes, tokens, rows, index.width_by_key(), ReadLock(folder))


def shard_file(folder: Path, key: tuple[str, int]) -> Path:
    """Return the file of one (site, layer)."""
    return folder / f"{key[0]}.{key[1]}.f16"


def tokenizer_hash(model: LanguageModel) -> str:
    """Return the hash of the tokenizer's vocabulary."""
    return content_hash(model.tokenizer.get_vocab())


def check_same_model(folder: Path, stored: Mapping, expected: Mapping) -> None:
    """Refuse a folder whose model or tokenizer is another one.

    Raises:
        UserError: A hash differs.
    """
    for name, kind in (("model_hash", "model"), ("tokenizer_hash", "tokenizer")):
        if stored[name] != expected[name]:
            raise UserError(
                f"The activations in {folder} are of another {kind}: load the one that they were "
                "harvested from, or harvest again into another folder."
            )


def read_index(folder: Path) -> ShardIndex:
    """Read `shards.json` and check tokens and files against it.

    Raises:
        DamagedError: A file is missing or is not what was written.
    """
    index = read_checked(folder / INDEX, ShardIndex)
    _check_files(folder, index, _read_mask(folder, index))
    return index


def _read_mask(folder: Path, index: ShardIndex) -> Bool[Tensor, "sequences t"]:
    """Read which tokens were harvested."""
    tensors, _ = read_sealed(folder / TOKENS, allow_unsealed=True)
    if content_hash(*(tensors.get(name, "") for name in ("tokens", "keep"))) != index.tokens:
        raise DamagedError(f"{TOKENS} is not what {INDEX} names")
    tokens, keep = tensors["tokens"], tensors["keep"]
    if tokens.ndim != 2 or keep.shape != tokens.shape or keep.dtype != torch.bool:
        raise DamagedError(f"{TOKENS} does not hold sequences of tokens")
    return keep


def _check_files(folder: Path, index: ShardIndex, keep: Bool[Tensor, "sequences t"]) -> None:
    """Compare the complete part of every file with its checksum.

    Raises:
        DamagedError: One differs, or the index contradicts itself.
    """
    if not all(site in SITES for site, _ in index.keys):  # sites become names of files
        raise DamagedError(f"{INDEX} names a site that there is not")
    if not len(index.keys) == len(index.widths) == len(index.checksums):
        raise DamagedError(f"{INDEX} lacks widths or checksums")
    if index.done > len(keep):
        raise DamagedError(f"{INDEX} names more sequences than {TOKENS} holds")
    rows = int(keep[: index.done].sum())
    for key, width, expected in zip(index.keys, index.widths, index.checksums, strict=True):
        path, size = shard_file(folder, key), 2 * rows * width
        stored_size = path.stat().st_size if path.is_file() else -1
        # An unfinished harvest may have bytes of an interrupted pass behind its complete part.
        if stored_size < size or (index.done == len(keep) and stored_size != size):
            raise DamagedError(f"{path.name} is truncated or missing")
        if _checksum(path, size) != expected:
            raise DamagedError(f"{path.name} is damaged (its checksum differs)")


def _checksum(path: Path, size: int) -> int:
    """Compute CRC-32 of a file's first `size` bytes."""
    value = 0
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, BLOCK))):
            value, size = zlib.crc32(block, value), size - len(block)
    return value


def unreadable(folder: Path, cause: str) -> str:
    """Return the sentence for a harvest that cannot be read."""
    return (
        f"The harvest in {visible(folder)} cannot be read ({without_folder(folder, cause)}): "
        "delete that folder and harvest again."
    )


def without_folder(folder: Path, cause: str) -> str:
    """Return a cause that names a file without its folder."""
    return cause.removeprefix(f"{visible(folder)}/")
