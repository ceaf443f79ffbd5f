"""A training's files: checkpoints that resume to the bit, and metrics line by line."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from helpers.artifacts import atomic_path, read_tensors, write_tensors
from helpers.errors import UserError
from helpers.sae.pupil import Pupil

log = logging.getLogger(__name__)

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


def resume(
    folder: Path | None, identity: str, pupils: list[Pupil]
) -> tuple[int, list[dict[str, Any]], float]:
    """First step, metrics so far and seconds spent, of a training that was stopped."""
    if folder is None or not (folder / CHECKPOINT).exists():
        if folder:
            (folder / METRICS).unlink(missing_ok=True)
        return 0, [], 0.0
    tensors, notes = read_tensors(folder / CHECKPOINT)
    if notes.get("identity") != identity:
        raise UserError(f"{folder} holds another training: name another folder or delete it.")
    for i, pupil in enumerate(pupils):
        mine = f"{i}."
        pupil.set_state({k[len(mine) :]: v for k, v in tensors.items() if k.startswith(mine)})
    step = int(notes["step"])
    lines = read_metrics(folder)
    lines = [line for line in lines if line["step"] <= step]
    with atomic_path(folder / METRICS) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log.info("Training goes on at step %d.", step)
    return step, lines, float(notes["seconds"])


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a training's `metrics.jsonl`; a line that was cut off by a kill is left out."""
    path = Path(folder) / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_checkpoint(
    folder: Path, identity: str, pupils: list[Pupil], step: int, began: float
) -> None:
    tensors = {f"{i}.{k}": v for i, pupil in enumerate(pupils) for k, v in pupil.state().items()}
    if not all(t.isfinite().all() for t in tensors.values()):
        return  # the next step tells it, and the checkpoint before this one stays
    notes = {
        "identity": identity,
        "step": str(step),
        "seconds": f"{time.perf_counter() - began:.3f}",
    }
    write_tensors(folder / CHECKPOINT, tensors, notes)
