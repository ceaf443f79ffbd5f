"""The state of a training: parameters in full precision, optimiser, rollback and checkpoint."""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, delete, read_sealed, write_sealed

log = logging.getLogger(__name__)

FULL_PRECISION = (torch.float32, torch.float64)
MAX_GRAD_NORM = 1.0  # gradients are clipped to this norm
CHECKPOINT_SECONDS = 60.0
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


@dataclass
class History:
    """The course of a training, step by step.

    Attributes:
        losses: Loss of each step, mean over its accumulated batches.
        norms: Norm of each step's gradient before it is clipped.
        seconds: Wall-clock time, of earlier runs of the same training too.
        stopped: Whether `stop` ended it.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return len(self.losses)


class TrainingState:
    """The trained parameters in full precision, their optimiser, and a snapshot to roll back to.

    Attributes:
        snapshot_step: The step of the snapshot.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], weight_decay: float):
        """Copy parameters of low precision to float32 and take the first snapshot.

        Args:
            parameters: Name → parameter.
            weight_decay: Decay of tensors with at least two axes.
        """
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.masters = [
            p if p.dtype in FULL_PRECISION else p.detach().float().requires_grad_()
            for p in self.parameters
        ]
        self.snapshot, self.snapshot_step = [m.detach().clone() for m in self.masters], 0
        groups = [
            {"params": [m for m in self.masters if m.ndim > 1], "weight_decay": weight_decay},
            {"params": [m for m in self.masters if m.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        fused = len({m.device for m in self.masters}) == 1
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, fused=fused)

    def clipped_gradient_norm(self) -> float:
        """Clip the gradients to `MAX_GRAD_NORM`; return their norm before."""
        for p, m in zip(self.parameters, self.masters, strict=True):
            if m is not p and p.grad is not None:
                m.grad, p.grad = p.grad.float(), None
        return nn.utils.clip_grad_norm_(self.masters, MAX_GRAD_NORM).item()

    def step(self, lr: float) -> None:
        """Make one step of the optimiser."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._write_parameters()

    def take_snapshot(self, step: int) -> None:
        """Copy the parameters of a step whose loss is finite."""
        with torch.no_grad():
            torch._foreach_copy_(self.snapshot, self.masters)
        self.snapshot_step = step

    def rollback(self) -> int:
        """Restore the last snapshot; return its step."""
        with torch.no_grad():
            torch._foreach_copy_(self.masters, self.snapshot)
        self._write_parameters()
        return self.snapshot_step

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters and the optimiser's state by name, for a checkpoint."""
        tensors = {
            f"parameter.{n}": m.detach() for n, m in zip(self.names, self.masters, strict=True)
        }
        for name, m in zip(self.names, self.masters, strict=True):
            adam = self.optimiser.state[m]
            tensors |= {f"{k}.{name}": adam[k] for k in ADAM_STATE if k in adam}
        return tensors

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore the state after `step` from what `tensors` returned."""
        with torch.no_grad():
            for name, m in zip(self.names, self.masters, strict=True):
                m.copy_(tensors[f"parameter.{name}"])
                if f"exp_avg.{name}" in tensors:
                    self.optimiser.state[m] = {
                        k: tensors[f"{k}.{name}"].to(m.device) for k in ADAM_STATE
                    }
        self.take_snapshot(step)
        self._write_parameters()

    def _write_parameters(self) -> None:
        """Copy the float32 copies to the parameters of low precision."""
        with torch.no_grad():
            for p, m in zip(self.parameters, self.masters, strict=True):
                if m is not p:
                    p.copy_(m)


class Checkpoint:
    """A file from which a stopped training resumes."""

    def __init__(self, path: Path, run_id: str, trained: dict[str, nn.Parameter]):
        """Note which training the file is of.

        Args:
            path: The file.
            run_id: Hash of the training's settings.
            trained: The parameters before the training.
        """
        self.path = path
        hashes = [content_hash(p) for p in trained.values()]
        self.run_id = content_hash(run_id, list(trained), hashes)
        self.due = time.perf_counter() + CHECKPOINT_SECONDS

    def write_if_due(self, state: TrainingState, history: History) -> None:
        """Write the state, unless the last write was less than the interval ago."""
        now = time.perf_counter()
        if now < self.due:
            return
        notes = {"about": self.run_id, "history": json.dumps(vars(history))}
        write_sealed(self.path, state.tensors(), notes)
        write_seconds = time.perf_counter() - now
        self.due = now + write_seconds + CHECKPOINT_SECONDS * max(1.0, write_seconds)

    def resume(self, state: TrainingState) -> History:
        """Load the state; return the history, an empty one if there is no checkpoint.

        A damaged checkpoint holds nothing that the training does not compute again: it is deleted,
        with a line in the log.

        Raises:
            UserError: It is of another training.
        """
        if not self.path.exists():
            return History()
        try:
            tensors, notes = read_sealed(self.path)
        except DamagedError as error:
            log.warning("The training starts anew, as its checkpoint is of no use: %s", error)
            delete(self.path)
            return History()
        if notes.get("about") != self.run_id:
            raise UserError(
                f"{visible(self.path)} is of another training: name another file or delete it."
            )
        history = History(**json.loads(notes["history"]))
        state.load(tensors, history.steps)
        log.info("Training resumes at step %d.", history.steps)
        return history

    def delete(self) -> None:
        """Delete the file of a training that is done."""
        self.path.unlink(missing_ok=True)
