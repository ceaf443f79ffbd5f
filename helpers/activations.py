"""Harvest activations: any sites and layers in one pass, into memory-mapped float16 files.

The forward pass stops after the last site needed, so the blocks above and the unembedding cost
nothing. A harvest is one folder: a raw float16 file per (site, layer), the tokens, and
`shards.json`, which says for what model and how far it is; a harvest that was killed goes on where
it stopped.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.artifacts import (
    FULL,
    alone,
    cache_dir,
    content_hash,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from helpers.errors import UserError
from helpers.models import anatomy, model_hash
from helpers.tracing.states import check_sites, site_value

PASS_TOKENS = 1024  # tokens in one forward pass
INDEX = "shards.json"


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
    """

    folder: Path
    model_hash: str
    tokenizer_hash: str
    tokens: Int[Tensor, "sequences t"]
    rows: Int[np.ndarray, " n"]
    widths: dict[tuple[str, int], int]

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
            raise UserError(
                f"{path} is truncated or missing: delete the folder {self.folder} and harvest "
                "again."
            )
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
            already there of the same harvest is kept and completed.
        leave_out: Token ids whose activations are not wanted; by default the tokenizer's special
            tokens, padding among them.
        first: Positions before this are left out. The first token of a sequence is an attention
            sink whose activations are tens of times longer than all others; 0 keeps it.

    Raises:
        UserError: Unknown site or layer, nothing to keep, the folder holds another harvest, the
            disk is full (what is there is kept), or an activation does not fit float16.
    """
    parts = anatomy(model)
    keys = [
        (site, layer)
        for layer in sorted({parts.check_layer(i) for i in layers})
        for site in check_sites(sites)
    ]
    if not keys:
        raise UserError("Nothing is harvested without a site and a layer: name at least one each.")
    leave_out = model.tokenizer.all_special_ids if leave_out is None else leave_out
    keep = ~torch.isin(tokens, torch.tensor(list(leave_out), dtype=tokens.dtype))
    keep[:, :first] = False
    if not keep.any():
        raise UserError("No token is left to harvest: all are special, padding or left out.")
    index = {
        "model_hash": model_hash(model),
        "tokenizer_hash": _tokenizer_hash(model),
        "tokens": content_hash(tokens, keep),
        "keys": [list(k) for k in keys],
    }
    folder = Path(folder or cache_dir() / "activations" / content_hash(index))
    with alone(folder):
        done, widths = _resumed(folder, index)
        if done < len(tokens):
            _write(model, tokens, keep, keys, folder, index, done)
            widths = read_json(folder / INDEX)["widths"]
    return _opened(folder, index, tokens, keep, dict(zip(keys, widths, strict=True)))


def open_shards(folder: str | Path) -> Shards:
    """A finished harvest.

    Raises:
        UserError: It is missing, damaged or not finished.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    tensors, _ = read_tensors(folder / "tokens.safetensors")
    if index["done"] < len(tensors["tokens"]):
        raise UserError(
            f"The harvest in {folder} stopped at sequence {index['done']} of "
            f"{len(tensors['tokens'])}: call harvest again with the same arguments to finish it."
        )
    keys = [(site, layer) for site, layer in index["keys"]]
    widths = dict(zip(keys, index["widths"], strict=True))
    return _opened(folder, index, tensors["tokens"], tensors["keep"], widths)


def _opened(folder: Path, index: dict, tokens: Tensor, keep: Tensor, widths: dict) -> Shards:
    rows = keep.flatten().nonzero()[:, 0].numpy()
    shards = Shards(folder, index["model_hash"], index["tokenizer_hash"], tokens, rows, widths)
    for key in widths:
        shards[key]  # a truncated file is told now, not in the middle of training
    return shards


def _file(folder: Path, key: tuple[str, int]) -> Path:
    return folder / f"{key[0]}.{key[1]}.f16"


def _resumed(folder: Path, index: dict) -> tuple[int, list[int]]:
    """How many sequences of this harvest are already there, and the widths."""
    if not (folder / INDEX).exists():
        return 0, []
    there = read_json(folder / INDEX)
    _same_model(folder, there, index)
    if {k: there[k] for k in index} != index:
        raise UserError(f"{folder} holds another harvest: name another folder or delete it.")
    return there["done"], there["widths"]


def _same_model(folder: Path, there: dict, wanted: dict) -> None:
    for name, what in (("model_hash", "model"), ("tokenizer_hash", "tokenizer")):
        if there[name] != wanted[name]:
            raise UserError(
                f"The activations in {folder} are of another {what}: load the one that they were "
                "harvested from, or harvest again into another folder."
            )


def _tokenizer_hash(model: LanguageModel) -> str:
    return content_hash(model.tokenizer.get_vocab())


def _write(model, tokens, keep, keys, folder: Path, index: dict, done: int) -> None:
    """Append what is missing; after every pass the index says how far the files are good."""
    if done == 0:
        write_tensors(folder / "tokens.safetensors", {"tokens": tokens, "keep": keep})
    before = int(keep[:done].sum())
    files = {}
    try:
        for key in keys:
            files[key] = _file(folder, key).open("r+b" if done else "wb")
        for sequences, values in passes(model, tokens, keep, keys, start=done):
            widths = []
            for key, file in files.items():
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
            before += int(keep[sequences].sum())
            write_json(folder / INDEX, index | {"widths": widths, "done": sequences.stop})
    except OSError as error:
        if error.errno in FULL or error.errno == errno.EFBIG:
            raise UserError(
                f"The disk is full: the harvest in {folder} stopped and what is there is kept; "
                "free some space and call harvest again."
            ) from error
        raise
    finally:
        for file in files.values():
            file.close()


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
    parts = anatomy(model)
    step = max(1, PASS_TOKENS // tokens.shape[1])
    for begin in range(start, len(tokens), step):
        sequences = slice(begin, min(begin + step, len(tokens)))
        batch = tokens[sequences]
        wanted = keep[sequences].flatten().nonzero()[:, 0]
        with torch.inference_mode(), model.trace(batch, use_cache=False) as tracer:
            kept = {}.save()
            for site, layer in keys:
                value = site_value(parts.layers[layer], site, len(batch))
                rows = value.half().reshape(-1, value.shape[-1])
                kept[site, layer] = rows.index_select(0, wanted.to(rows.device))
            tracer.stop()
        yield sequences, dict(kept)
