"""Harvest activations: any sites and layers in one pass, into memory-mapped float16 files.

The forward pass stops after the last site needed, so the blocks above and the unembedding cost
nothing. A harvest is one folder (`helpers.forward.shards`); one that was interrupted continues
where it stopped.
"""

import errno
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.activations import trace_activations
from helpers.forward.shards import (
    INDEX,
    TOKENS,
    ShardIndex,
    Shards,
    check_same_model,
    open_shards,
    read_index,
    shard_file,
    tokenizer_hash,
    unreadable,
    without_folder,
)
from helpers.forward.sites import check_sites
from helpers.io.cache import file_lock
from helpers.io.files import DISK_FULL, cache_dir, write_json, write_tensors
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, delete
from helpers.models import architecture_of, model_hash

log = logging.getLogger(__name__)

PASS_TOKENS = 1024  # tokens in one forward pass


def harvest(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences t"],
    *,
    sites: Sequence[str] = ("mlp",),
    layers: Sequence[int],
    folder: str | Path | None = None,
    first_position: int = 1,
) -> Shards:
    """Harvest the activations of every token at the given sites and layers.

    Special tokens, padding among them, are left out.

    Args:
        model: Any model of a known family.
        tokens: Sequences of one length, padded on the right if at all.
        sites: Any of `helpers.forward.sites.SITES`.
        layers: Layers that are harvested; negative ones count from the end.
        folder: The folder of the harvest; by default one in the cache, by what it depends on. A
            harvest of the same inputs that is there is kept and completed; a damaged one in the
            cache is made again.
        first_position: Positions before this are left out. The first token of a sequence is an
            attention sink whose activations are tens of times larger than all others; 0 keeps it.

    Raises:
        UserError: Unknown site or layer, nothing to keep, the folder holds another harvest or a
            damaged one, the disk is full (the complete part is kept), or an activation does not
            fit float16.
    """
    arch = architecture_of(model)
    keys = [
        (site, layer)
        for layer in sorted({arch.check_layer(i) for i in layers})
        for site in check_sites(sites)
    ]
    if not keys:
        raise UserError("Nothing is harvested without a site and a layer: name at least one each.")
    special = torch.tensor(list(model.tokenizer.all_special_ids), dtype=tokens.dtype)
    keep = ~torch.isin(tokens, special)
    keep[:, :first_position] = False
    if not keep.any():
        raise UserError("No token is left to harvest: all are special, padding or left out.")
    empty = ShardIndex(
        model_hash=model_hash(model),
        tokenizer_hash=tokenizer_hash(model),
        tokens=content_hash(tokens, keep),
        keys=keys,
    )
    cached = folder is None
    folder = Path(folder or cache_dir() / "activations" / content_hash(empty.identity))
    with file_lock(folder):
        try:
            index = _stored_index(folder, empty, cached)
        except DamagedError as error:
            if not cached:
                raise UserError(unreadable(folder, error.cause)) from None
            cause = without_folder(folder, error.cause)
            log.warning("The harvest in %s is made again: %s.", visible(folder), cause)
            # Without its index a harvest starts anew; locks in the folder stay.
            delete(folder / INDEX if folder.is_dir() else folder)
            index = empty
        if index.done < len(tokens):
            index = _write(model, tokens, keep, folder, index)
        return open_shards(folder, index, tokens, keep)


def _stored_index(folder: Path, empty: ShardIndex, cached: bool) -> ShardIndex:
    """Return the index of this harvest as far as it is complete.

    Args:
        folder: The folder of the harvest.
        empty: The index of this harvest without progress.
        cached: The folder is in the cache, where its name stands for its inputs.

    Raises:
        DamagedError: A file is not what was written, or the cache holds another harvest under this
            one's name.
        UserError: The folder holds another harvest.
    """
    if folder.exists() and not folder.is_dir():
        raise DamagedError("it is no folder")
    if not (folder / INDEX).exists():
        return empty
    index = read_index(folder)
    if cached and index.identity != empty.identity:
        raise DamagedError(f"{INDEX} names another harvest")
    check_same_model(folder, index.identity, empty.identity)
    if index.identity != empty.identity:
        raise UserError(f"{folder} holds another harvest: name another folder or delete it.")
    return index


def _write(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences t"],
    keep: Bool[Tensor, "sequences t"],
    folder: Path,
    index: ShardIndex,
) -> ShardIndex:
    """Append the missing sequences; the index is written after every pass."""
    if not index.done:
        delete(folder / TOKENS)
        write_tensors(folder / TOKENS, {"tokens": tokens, "keep": keep})
        for key in index.keys:
            delete(shard_file(folder, key))  # processes that mapped one keep what they read
    n_rows = int(keep[: index.done].sum())
    checksums = list(index.checksums) or [0] * len(index.keys)
    files = {}
    try:
        for key in index.keys:
            files[key] = shard_file(folder, key).open("r+b" if index.done else "xb")
        for sequences, values in forward_passes(model, tokens, keep, index.keys, start=index.done):
            widths = []
            for i, (key, file) in enumerate(files.items()):
                rows = values[key].cpu()
                _check_finite(rows, key)
                widths.append(rows.shape[1])
                # An interrupted pass may have left bytes here: overwrite, and cut off the rest.
                file.seek(2 * n_rows * rows.shape[1])
                file.write(rows.numpy())
                file.truncate()
                file.flush()
                checksums[i] = zlib.crc32(rows.contiguous().numpy(), checksums[i])
            n_rows += int(keep[sequences].sum())
            progress = {"widths": widths, "checksums": checksums, "done": sequences.stop}
            index = index.model_copy(update=progress)
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


def _check_finite(rows: Float[Tensor, "m width"], key: tuple[str, int]) -> None:
    """Refuse infinities and NaN; `aminmax` is ten times as fast as `isfinite` on float16."""
    if len(rows) and not all(bool(x.isfinite()) for x in rows.float().aminmax()):
        raise UserError(
            f"An activation at site {key[0]} of layer {key[1]} does not fit float16: leave out the "
            "first positions (first_position=), or harvest another site."
        )


def forward_passes(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences t"],
    keep: Bool[Tensor, "sequences t"],
    keys: Sequence[tuple[str, int]],
    *,
    start: int = 0,
) -> Iterator[tuple[slice, dict[tuple[str, int], Float[Tensor, "m width"]]]]:
    """Run forward passes over `tokens` that stop after the last of `keys`.

    Args:
        model: Any model of a known family.
        tokens: Sequences of one length.
        keep: Mask of the positions that are kept.
        keys: (site, layer) in order of computation.
        start: Index of the first sequence.

    Yields:
        The sequences of a pass, and the activations at their kept positions as float16.
    """
    n_sequences = max(1, PASS_TOKENS // tokens.shape[1])
    for begin in range(start, len(tokens), n_sequences):
        sequences = slice(begin, min(begin + n_sequences, len(tokens)))
        positions = keep[sequences].flatten().nonzero()[:, 0]

        def select(value: Tensor, layer: int, positions: Tensor = positions) -> Tensor:
            rows = value.half().reshape(-1, value.shape[-1])
            return rows.index_select(0, positions.to(rows.device))

        with torch.inference_mode():
            values = trace_activations(model, tokens[sequences], keys, select=select)
        yield sequences, values
