"""Files of a training: checkpoints that resume to the bit, and metrics line by line."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from helpers.errors import UserError
from helpers.io.files import atomic_path
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, delete, parse_checked, read_sealed, write_sealed

log = logging.getLogger(__name__)

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Line(BaseModel):
    """A line of metrics, in the order in which the trainer writes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Count
    sae: Count
    architecture: str
    site: str
    layer: int
    d_sae: Count
    mse: Number
    l0: Number
    dead: Number
    lr: Number
    seconds: Number


@dataclass
class Progress:
    """Progress of a training.

    Attributes:
        step: Number of steps that are done.
        lines: Metrics so far.
        seconds: Time spent.
        states: One state of `SAETrainer` per SAE; none at the start.
    """

    step: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    states: list[dict[str, Tensor]] = field(default_factory=list)


def read_progress(folder: Path | None, identity: str) -> Progress:
    """Read how far a training came that was stopped; its start if there is no checkpoint.

    Args:
        folder: Folder of the training; None if nothing is written.
        identity: Hash of all that the training depends on.

    Raises:
        DamagedError: The checkpoint or its metrics are not as they were written.
        UserError: The checkpoint is of another training.
    """
    if folder is None:
        return Progress()
    if not (folder / CHECKPOINT).exists():
        delete(folder / METRICS)
        return Progress()
    try:
        tensors, notes = read_sealed(folder / CHECKPOINT)
        if notes.get("identity") != identity:
            raise UserError(
                f"{visible(folder)} holds another training: name another folder or delete it."
            )
        step = int(notes["step"])
        lines = [line for line in read_metrics(folder) if line["step"] <= step]
        if content_hash(lines) != notes["metrics"]:
            raise DamagedError(f"{visible(folder / METRICS)} is not what its checkpoint names")
    except DamagedError as error:
        advice = f"delete {visible(folder / CHECKPOINT)}, and the training starts anew"
        raise DamagedError(error.cause, advice) from None
    # Lines of the steps after the checkpoint are written once more as these are repeated.
    with atomic_path(folder / METRICS) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log.info("Training goes on at step %d.", step)
    return Progress(step, lines, float(notes["seconds"]), _states(tensors))


def _states(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split a checkpoint's tensors, `<index>.<name>`, by SAE."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = tensor
    return [states[i] for i in sorted(states)]


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Read a training's `metrics.jsonl`; a line that was cut off by a kill is left out.

    Raises:
        DamagedError: The file is no list of such lines; names the first that is none.
    """
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    shown = visible(path)
    try:
        if not path.is_file():
            raise DamagedError(f"{shown} is no file")
        lines = path.read_bytes().split(b"\n")[:-1]
        return [
            parse_checked(line, _Line, f"line {number} of {shown}").model_dump()
            for number, line in enumerate(lines, 1)
        ]
    except OSError as error:
        cause = f"{shown} cannot be read ({error.strerror or error})"
    except DamagedError as error:
        cause = error.cause
    raise DamagedError(cause, "delete its folder and train again")


def write_checkpoint(
    folder: Path, identity: str, states: Sequence[dict[str, Tensor]], step: int, began: float
) -> None:
    """Write a checkpoint, unless a tensor in it is not finite.

    Args:
        folder: Folder of the training.
        identity: Hash of all that the training depends on.
        states: State of each `SAETrainer`.
        step: Number of steps that are done.
        began: `time.perf_counter()` at the start, less the time spent before.
    """
    tensors = {f"{i}.{name}": t for i, state in enumerate(states) for name, t in state.items()}
    if not all(t.isfinite().all() for t in tensors.values()):
        return  # the next step reports it, and the checkpoint before this one stays
    notes = {
        "identity": identity,
        "step": str(step),
        "seconds": f"{time.perf_counter() - began:.3f}",
        "metrics": content_hash(read_metrics(folder)),
    }
    write_sealed(folder / CHECKPOINT, tensors, notes)
