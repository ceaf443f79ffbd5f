"""A training's files: checkpoints that resume to the bit, and metrics line by line."""

import json
import logging
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from helpers.errors import UserError
from helpers.io.files import atomic_path
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, delete, parse_checked, read_sealed, write_sealed
from helpers.sae.pupil import SAETrainer

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


def resume(
    folder: Path | None, identity: str, pupils: list[SAETrainer]
) -> tuple[int, list[dict[str, Any]], float]:
    """First step, metrics so far and seconds spent, of a training that was stopped.

    Raises:
        DamagedError: The checkpoint or its metrics are not what was written; the pupils are as they
            were.
        UserError: The checkpoint is of another training.
    """
    if folder is None:
        return 0, [], 0.0
    if not (folder / CHECKPOINT).exists():
        delete(folder / METRICS)
        return 0, [], 0.0
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
    for i, pupil in enumerate(pupils):
        mine = f"{i}."
        pupil.set_state({k[len(mine) :]: v for k, v in tensors.items() if k.startswith(mine)})
    with atomic_path(folder / METRICS) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log.info("Training goes on at step %d.", step)
    return step, lines, float(notes["seconds"])


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a training's `metrics.jsonl`; a line that was cut off by a kill is left out.

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
    folder: Path, identity: str, pupils: list[SAETrainer], step: int, began: float
) -> None:
    tensors = {f"{i}.{k}": v for i, pupil in enumerate(pupils) for k, v in pupil.state().items()}
    if not all(t.isfinite().all() for t in tensors.values()):
        return  # the next step tells it, and the checkpoint before this one stays
    notes = {
        "identity": identity,
        "step": str(step),
        "seconds": f"{time.perf_counter() - began:.3f}",
        "metrics": content_hash(read_metrics(folder)),
    }
    write_sealed(folder / CHECKPOINT, tensors, notes)
