"""Harvest activations: any sites and layers in one pass, into memory-mapped float16 files.

The forward pass stops after the last site needed, so the blocks above and the unembedding cost
nothing. A harvest is one folder: a raw float16 file per (site, layer), the tokens, and
`shards.json`, which says for what model, how far it is and with what checksums; a harvest that was
killed goes on where it stopped.
"""

import errno
import logging
import zlib
from collections.abc import Iterator, Sequence
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
from helpers.forward.sites import SITES, check_sites, site_value
from helpers.io.cache import file_lock
from helpers.io.files import DISK_FULL, cache_dir, write_json, write_tensors
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, delete, read_checked, read_sealed
from helpers.io.shared_folder import ReadLock
from helpers.models import architecture_of, model_hash

log = logging.getLogger(__name__)

PASS_TOKENS = 1024  # tokens in one forward pass
INDEX, TOKENS = "shards.json", "tokens.safetensors"
BLOCK = 2**24  # bytes that are read at a time for a checksum

Count = Annotated[int, Field(ge=0, lt=2**40)]


class _Index(BaseModel):
    """What `shards.json` says.

    Attributes:
        model_hash: Of the model.
        tokenizer_hash: Of its tokenizer's vocabulary.
        tokens: `content_hash` of the tokens and of which were wanted.
        keys: (site, layer) of each file.
        widths: Of each file; none before the first pass.
        checksums: CRC-32 of each file's good part.
        done: Sequences that are in the files.
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
    def of(self) -> dict:
        """What it depends on, without how far it is."""
        return self.model_dump(include={"model_hash", "tokenizer_hash", "tokens", "keys"})

    def widths_of(self) -> dict[tuple[str, int], int]:
        """Width of each (site, layer)."""
        return dict(zip(self.keys, self.widths, strict=True))


@dataclass(frozen=True)
class Shards:
    """Activations on disk, as they were harvested.

    Attributes:
        folder: Where they lie.
        model_hash: Of the model that they are of.
        tokenizer_hash: Of the tokenizer's vocabulary.
        tokens: (sequences, T) what the model read.
        rows: (n,) which token each row belongs to, as an index into `tokens.flatten()`.
        widths: Width of each (site, layer).
        reading: As long as it lives, others that use the folder too leave it there.
    """

    folder: Path
    model_hash: str
    tokenizer_hash: str
    tokens: Int[Tensor, "sequences t"]
    rows: Int[np.ndarray, " n"]
    widths: dict[tuple[str, int], int]
    reading: ReadLock | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, key: tuple[str, int]) -> Float[np.ndarray, "n width"]:
        """The activations of one (site, layer), float16, mapped from disk.

        Raises:
            UserError: They were not harvested, or the file is not of the size it should be.
        """
        site, layer = key
        if key not in self.widths:
            there = ", ".join(f"{s} {i}" for s, i in self.widths)
            raise UserError(f"Site {site} of layer {layer} was not harvested; there are {there}.")
        path = _file(self.folder, key)
        shape = (len(self), self.widths[key])
        if not path.is_file() or path.stat().st_size != 2 * shape[0] * shape[1]:
            raise UserError(_again(self.folder, f"{path.name} is truncated or missing"))
        return np.memmap(path, np.float16, "r", shape=shape)

    def __len__(self) -> int:
        """Rows, the same for every site and layer."""
        return len(self.rows)

    def source(self, row: int) -> tuple[int, int]:
        """(sequence, position) of the token that a row belongs to."""
        return divmod(int(self.rows[row]), self.tokens.shape[1])

    def check(self, model: LanguageModel) -> None:
        """Refuse activations of another model or tokenizer.

        Raises:
            UserError: They are.
        """
        _same_model(
            self.folder,
            {"model_hash": self.model_hash, "tokenizer_hash": self.tokenizer_hash},
            {"model_hash": model_hash(model), "tokenizer_hash": _tokenizer_hash(model)},
        )


def harvest(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences t"],
    *,
    sites: Sequence[str] = ("mlp",),
    layers: Sequence[int],
    folder: str | Path | None = None,
    leave_out: Sequence[int] | None = None,
    first: int = 1,
) -> Shards:
    """Activations of every token at the given sites and layers.

    Args:
        model: Any model of a known family.
        tokens: Sequences of one length, padded on the right if at all.
        sites: Any of `helpers.tracing.SITES`.
        layers: Which layers; negative ones count from the end.
        folder: Where to keep them; by default in the cache, by what they depend on. What is
            already there of the same harvest is kept and completed; what is damaged in the cache
            is made again.
        leave_out: Token ids whose activations are not wanted; by default the tokenizer's special
            tokens, padding among them.
        first: Positions before this are left out. The first token of a sequence is an attention
            sink whose activations are tens of times longer than all others; 0 keeps it.

    Raises:
        UserError: Unknown site or layer, nothing to keep, the folder holds another harvest or a
            damaged one, the disk is full (what is there is kept), or an activation does not fit
            float16.
    """
    arch = architecture_of(model)
    keys = [
        (site, layer)
        for layer in sorted({arch.check_layer(i) for i in layers})
        for site in check_sites(sites)
    ]
    if not keys:
        raise UserError("Nothing is harvested without a site and a layer: name at least one each.")
    leave_out = model.tokenizer.all_special_ids if leave_out is None else leave_out
    keep = ~torch.isin(tokens, torch.tensor(list(leave_out), dtype=tokens.dtype))
    keep[:, :first] = False
    if not keep.any():
        raise UserError("No token is left to harvest: all are special, padding or left out.")
    wanted = _Index(
        model_hash=model_hash(model),
        tokenizer_hash=_tokenizer_hash(model),
        tokens=content_hash(tokens, keep),
        keys=keys,
    )
    cached = folder is None
    folder = Path(folder or cache_dir() / "activations" / content_hash(wanted.of))
    with file_lock(folder):
        try:
            index = _resumed(folder, wanted, cached)
        except DamagedError as error:
            if not cached:
                raise UserError(_again(folder, error.cause)) from None
            cause = _without(folder, error.cause)
            log.warning("The harvest in %s is made again: %s.", visible(folder), cause)
            index = _cleared(folder, wanted)
        if index.done < len(tokens):
            index = _write(model, tokens, keep, folder, index)
        return _opened(folder, index, tokens, keep)


def open_shards(folder: str | Path) -> Shards:
    """A finished harvest.

    Raises:
        UserError: It is missing, damaged or not finished.
    """
    folder = Path(folder)
    try:
        index = read_checked(folder / INDEX, _Index)
        tokens, keep = _read_tokens(folder, index)
        _check_files(folder, index, keep)
    except DamagedError as error:
        raise UserError(_again(folder, error.cause)) from None
    if index.done < len(tokens):
        raise UserError(
            f"The harvest in {folder} stopped at sequence {index.done} of {len(tokens)}: call "
            "harvest again with the same arguments to finish it."
        )
    return _opened(folder, index, tokens, keep)


def _opened(folder: Path, index: _Index, tokens: Tensor, keep: Tensor) -> Shards:
    rows = keep.flatten().nonzero()[:, 0].numpy()
    hashes = index.model_hash, index.tokenizer_hash
    return Shards(folder, *hashes, tokens, rows, index.widths_of(), ReadLock(folder))


def _again(folder: Path, cause: str) -> str:
    return (
        f"The harvest in {visible(folder)} cannot be read ({_without(folder, cause)}): delete that "
        "folder and harvest again."
    )


def _without(folder: Path, cause: str) -> str:
    """What is wrong, with files by their names alone."""
    return cause.removeprefix(f"{visible(folder)}/")


def _file(folder: Path, key: tuple[str, int]) -> Path:
    return folder / f"{key[0]}.{key[1]}.f16"


def _resumed(folder: Path, wanted: _Index, cached: bool) -> _Index:
    """How far this harvest is.

    Raises:
        DamagedError: What is there is not what was written; so is another harvest under this one's
            name in the cache.
        UserError: It is another harvest.
    """
    if folder.exists() and not folder.is_dir():
        raise DamagedError("it is no folder")
    if not (folder / INDEX).exists():
        return wanted
    index = read_checked(folder / INDEX, _Index)
    _check_files(folder, index, _read_tokens(folder, index)[1])
    if cached and index.of != wanted.of:
        raise DamagedError(f"{INDEX} names another harvest")
    _same_model(folder, index.of, wanted.of)
    if index.of != wanted.of:
        raise UserError(f"{folder} holds another harvest: name another folder or delete it.")
    return index


def _cleared(folder: Path, wanted: _Index) -> _Index:
    """Forget what is there; the lock of those who still read it stays."""
    delete(folder / INDEX if folder.is_dir() else folder)
    return wanted


def _read_tokens(folder: Path, index: _Index) -> tuple[Tensor, Tensor]:
    """Tokens and which of them were wanted, (sequences, T) each."""
    tensors, _ = read_sealed(folder / TOKENS, allow_unsealed=True)
    if content_hash(*(tensors.get(name, "") for name in ("tokens", "keep"))) != index.tokens:
        raise DamagedError(f"{TOKENS} is not what {INDEX} names")
    tokens, keep = tensors["tokens"], tensors["keep"]
    if tokens.ndim != 2 or keep.shape != tokens.shape or keep.dtype != torch.bool:
        raise DamagedError(f"{TOKENS} does not hold sequences of tokens")
    return tokens, keep


def _check_files(folder: Path, index: _Index, keep: Bool[Tensor, "sequences t"]) -> None:
    """Compare the good part of every file with its checksum.

    Raises:
        DamagedError: One differs, or the index contradicts itself.
    """
    if not all(site in SITES for site, _ in index.keys):  # they become names of files
        raise DamagedError(f"{INDEX} names a site that there is not")
    if not len(index.keys) == len(index.widths) == len(index.checksums):
        raise DamagedError(f"{INDEX} lacks widths or checksums")
    if index.done > len(keep):
        raise DamagedError(f"{INDEX} names more sequences than {TOKENS} holds")
    rows = int(keep[: index.done].sum())
    for key, width, checksum in zip(index.keys, index.widths, index.checksums, strict=True):
        path, size = _file(folder, key), 2 * rows * width
        there = path.stat().st_size if path.is_file() else -1
        if there < size or (index.done == len(keep) and there != size):
            raise DamagedError(f"{path.name} is truncated or missing")
        if _checksum(path, size) != checksum:
            raise DamagedError(f"{path.name} is damaged (its checksum differs)")


def _checksum(path: Path, size: int) -> int:
    """CRC-32 of a file's first `size` bytes."""
    value = 0
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, BLOCK))):
            value, size = zlib.crc32(block, value), size - len(block)
    return value


def _same_model(folder: Path, there: dict, wanted: dict) -> None:
    for name, what in (("model_hash", "model"), ("tokenizer_hash", "tokenizer")):
        if there[name] != wanted[name]:
            raise UserError(
                f"The activations in {folder} are of another {what}: load the one that they were "
                "harvested from, or harvest again into another folder."
            )


def _tokenizer_hash(model: LanguageModel) -> str:
    return content_hash(model.tokenizer.get_vocab())


def _write(
    model: LanguageModel, tokens: Tensor, keep: Tensor, folder: Path, index: _Index
) -> _Index:
    """Append what is missing; after every pass the index says how far the files are good."""
    if not index.done:
        delete(folder / TOKENS)
        write_tensors(folder / TOKENS, {"tokens": tokens, "keep": keep})
        for key in index.keys:
            delete(_file(folder, key))  # who has mapped one keeps what it read
    before = int(keep[: index.done].sum())
    checksums = list(index.checksums) or [0] * len(index.keys)
    files = {}
    try:
        for key in index.keys:
            files[key] = _file(folder, key).open("r+b" if index.done else "xb")
        for sequences, values in passes(model, tokens, keep, index.keys, start=index.done):
            widths = []
            for i, (key, file) in enumerate(files.items()):
                rows = values[key].cpu()
                if not _finite(rows):
                    raise UserError(
                        f"An activation at site {key[0]} of layer {key[1]} does not fit float16: "
                        "leave out the first positions (first=), or harvest another site."
                    )
                widths.append(rows.shape[1])
                file.seek(2 * before * rows.shape[1])
                file.write(rows.numpy())
                file.truncate()
                file.flush()
                checksums[i] = zlib.crc32(rows.contiguous().numpy(), checksums[i])
            before += int(keep[sequences].sum())
            how_far = {"widths": widths, "checksums": checksums, "done": sequences.stop}
            index = index.model_copy(update=how_far)
            write_json(folder / INDEX, index.model_dump())
    except OSError as error:
        if error.errno in DISK_FULL or error.errno == errno.EFBIG:
            raise UserError(
                f"The disk is full: the harvest in {folder} stopped and what is there is kept; "
                "free some space and call harvest again."
            ) from error
        raise
    finally:
        for file in files.values():
            file.close()
    return index


def _finite(rows: Float[Tensor, "m width"]) -> bool:
    """Whether all are; ten times as fast as `isfinite` on float16."""
    return not len(rows) or all(bool(x.isfinite()) for x in rows.float().aminmax())


def passes(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences t"],
    keep: Bool[Tensor, "sequences t"],
    keys: Sequence[tuple[str, int]],
    *,
    start: int = 0,
) -> Iterator[tuple[slice, dict[tuple[str, int], Float[Tensor, "m width"]]]]:
    """Forward passes over `tokens` that stop after the last of `keys`.

    Args:
        model: Any model of a known family.
        tokens: Sequences of one length.
        keep: Which positions are wanted.
        keys: (site, layer) in order of computation.
        start: The first sequence.

    Yields:
        Which sequences were read, and the activations at their wanted positions as float16.
    """
    arch = architecture_of(model)
    step = max(1, PASS_TOKENS // tokens.shape[1])
    for begin in range(start, len(tokens), step):
        sequences = slice(begin, min(begin + step, len(tokens)))
        batch = tokens[sequences]
        wanted = keep[sequences].flatten().nonzero()[:, 0]
        with torch.inference_mode(), model.trace(batch, use_cache=False) as tracer:
            kept = {}.save()
            for site, layer in keys:
                value = site_value(arch.layers[layer], site, len(batch))
                rows = value.half().reshape(-1, value.shape[-1])
                kept[site, layer] = rows.index_select(0, wanted.to(rows.device))
            tracer.stop()
        yield sequences, dict(kept)
