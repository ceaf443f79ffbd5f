"""Checks of a folder before it is loaded as a model.

A foreign folder can ask for more than its own weights: code, adapters, files outside of it. None of
that is granted. Only the files that `look_into` lists are read.
"""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from helpers.errors import UserError
from helpers.io.safe_text import visible

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls what the suite reckons with
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
LARGEST = 50_000_000  # bytes of a JSON file: an index of 100,000 tensors has 10 million
SHARDS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # read before all else

# Entries of config.json that would have something else read or run than the model's own weights.
REFUSED = {
    "auto_map": "would run code of its own, which the suite never does",
    "quantization_config": "is quantised; save it with weights in float32, bfloat16 or float16",
    "transformers_weights": f"keeps its weights in a file that is not called {WEIGHTS}",
    "configuration_files": "has its configuration in other files",
    "fusion_config": "would have its parts replaced",
    "distributed_config": "would be spread over several machines",
}


@dataclass(frozen=True)
class Stored:
    """A tensor of the weights: its kind of number, as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Count of its numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFiles:
    """A folder that was looked into.

    Attributes:
        folder: Its path.
        name: The name by which it can be loaded again: a hub name, or the folder.
        what: Its name at the beginning of a sentence: "The model x".
        config: Content of config.json.
        tensors: Name → kind and shape of each tensor of the weights.
    """

    folder: Path
    name: str
    what: str
    config: dict[str, Any]
    tensors: dict[str, Stored]


def shown(text: object, max_length: int = 120) -> str:
    """Make foreign text fit for a sentence: without control characters, cut to a length.

    Args:
        text: The text; another object is shown by its `str`.
        max_length: Characters after which it is cut.
    """
    plain = visible(text)
    return plain if len(plain) <= max_length else f"{plain[:max_length]}…"


def innermost(error: BaseException) -> str:
    """Return the message of the first exception in a chain.

    A `LookupError` gives only a name, so an exception that it caused goes before it.
    """
    chain = [error]
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        chain.append(error := cause)
    telling = [e for e in chain if not isinstance(e, LookupError)]
    first = telling[-1] if telling else chain[-1]
    message = " ".join(str(first).split())
    kind = type(first).__name__
    return shown(message if telling and message else f"{kind} {message}".strip(), 200).rstrip(".")


@contextlib.contextmanager
def refusing(problem: str, advice: str) -> Iterator[None]:
    """Turn any exception of another library into one sentence, with its cause in brackets.

    Raises:
        UserError: Anything was raised.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # parsers of untrusted files; Rust's panics are no `Exception`
        raise UserError(f"{problem} ({innermost(error)}): {advice}.") from error


def look_into(folder: Path, where: str, *, name: str | None = None) -> ModelFiles:
    """Check that a folder holds a model that may be loaded, and list its weights.

    Args:
        folder: The folder.
        where: Its name at the beginning of an error sentence.
        name: Its name on the hub, if it comes from there.

    Raises:
        UserError: Something is missing, damaged, lies outside of the folder or is not the model's
            own; says what.
    """
    try:
        return _looked_into(folder, where, name or str(folder))
    except OSError as error:
        raise UserError(f"{where} cannot be read ({innermost(error)}): see who may.") from error


def _looked_into(folder: Path, where: str, name: str) -> ModelFiles:
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{where} holds an adapter (adapter_config.json), which would change or choose the "
            "model: merge the adapter into its model and save that, or take the file away."
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{where} has no config.json: it is not a saved model.")
    config = _object(folder / "config.json", where)
    for entry, why in REFUSED.items():
        if config.get(entry):
            raise UserError(
                f"{where} cannot be loaded: its config.json names '{entry}', so it {why}."
            )
    tensors = _tensors(folder, where)
    _check_tokenizer(folder, where)
    return ModelFiles(folder, name, where, config, tensors)


def _check_tokenizer(folder: Path, where: str) -> None:
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"{where} has no tokenizer: save it there too, with the tokenizer's save_pretrained."
        )
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    config = _object(file, where)
    if config.get("auto_map"):
        raise UserError(
            f"{where} cannot be loaded: its tokenizer_config.json names 'auto_map', so its "
            f"tokenizer {REFUSED['auto_map']}."
        )
    others = config.get("fast_tokenizer_files") or []
    for other in others if isinstance(others, list) else [others]:
        _check_own(other, file.name, where)


def weight_files(folder: Path, where: str) -> list[str]:
    """List the names of the files with the weights of the model in a folder.

    Raises:
        UserError: There are none that may be read.
    """
    index = folder / INDEX
    named = None
    if index.is_file():
        content = _object(index, where)
        named = content.get("weight_map")
        if not isinstance(named, dict) or not named or "metadata" not in content:
            raise UserError(
                f"{where} is damaged: {INDEX} has no 'metadata' or no 'weight_map' of tensors to "
                "files."
            )
        for file in named.values():
            _check_own(file, INDEX, where)
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if named:
        return sorted(set(named.values()))
    if list(folder.glob("*.safetensors")):
        raise UserError(
            f"{where} has safetensors weights, but neither {WEIGHTS} nor {INDEX} names them: save "
            "the model again with save_pretrained."
        )
    raise UserError(
        f"{where} has no safetensors weights; pickled weights are never read: save the model "
        "again with save_pretrained."
    )


def _check_own(file: Any, named_by: str, where: str) -> None:
    """Refuse a file's name that leads out of the folder."""
    if not isinstance(file, str) or not file or re.search(r"[/\\\x00]", file) or file == "..":
        raise UserError(
            f"{where} cannot be loaded: its {named_by} names the file '{shown(file)}', which does "
            "not lie in that folder."
        )


def _tensors(folder: Path, where: str) -> dict[str, Stored]:
    shard = next((f.name for f in folder.iterdir() if SHARDS.match(f.name)), None)
    if shard:
        raise UserError(
            f"{where} holds the pieces of a distributed training ({shown(shard)}): save the whole "
            "model with save_pretrained."
        )
    tensors: dict[str, Stored] = {}
    for name in weight_files(folder, where):
        if not (folder / name).is_file():
            raise UserError(f"{where} is incomplete: the weights {shown(name)} are missing.")
        for tensor, stored in _header(folder / name, where).items():
            if tensor in tensors:
                raise UserError(f"{where} is damaged: it has the tensor '{shown(tensor)}' twice.")
            tensors[tensor] = stored
    if not tensors:
        raise UserError(f"{where} has weights without a single tensor: save the model again.")
    return tensors


def _header(file: Path, where: str) -> dict[str, Stored]:
    """Read kind and shape of each tensor of a safetensors file, checking the file's length."""
    try:
        with safe_open(file, framework="pt"):
            pass  # opening checks kinds, shapes and offsets
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{where} is damaged: the weights {shown(file.name)} cannot be read "
            f"({innermost(error)}): fetch or save them again."
        ) from error
    with file.open("rb") as opened:
        raw = opened.read(int.from_bytes(opened.read(8), "little"))
    tensors = _parsed(raw, f"the header of {shown(file.name)}", where)
    tensors.pop("__metadata__", None)
    return {name: Stored(x["dtype"], tuple(x["shape"])) for name, x in tensors.items()}


def _object(file: Path, where: str) -> dict[str, Any]:
    """Read a JSON file of the folder that holds one object."""
    if file.stat().st_size > LARGEST:
        raise UserError(f"{where} is damaged: {file.name} has more than {LARGEST} bytes.")
    return _parsed(file.read_bytes(), file.name, where)


def _parsed(raw: bytes, what: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {what} is no JSON ({innermost(error)}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is damaged: {what} holds {type(value).__name__}, not an object.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"'{twice}' stands there twice")
    return entries
