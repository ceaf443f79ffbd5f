"""The one gradient loop: for methods that unlearn by training, for attacks that relearn, and for
models trained from scratch.

Batches and random numbers are functions of the seed and the step, so a training that was stopped
and goes on from its checkpoint passes through the same numbers as one that was not stopped.
"""

import contextlib
import ctypes
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.io.hashing import content_hash
from helpers.io.progress_bar import bar
from helpers.io.safe_text import visible
from helpers.io.sealed import DamagedError, delete, read_sealed, write_sealed
from helpers.models.parameters import choose_parameters, trainable

__all__ = ["History", "choose_parameters", "train", "trainable"]

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Any], Tensor]
FULL_PRECISION = (torch.float32, torch.float64)
CHECKPOINT_SECONDS = 60.0
GOOD_EVERY = 4  # steps between two copies of the last good numbers: each costs a step some 3 %
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of a parameter


@dataclass
class History:
    """What happened, step by step.

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
        """Steps made."""
        return len(self.losses)


def train(
    module: nn.Module,
    loss: Loss,
    batches: Sequence | Callable[[int], Any],
    *,
    steps: int,
    lr: float | Callable[[int], float],
    parameters: Sequence[str] | None = None,
    weight_decay: float = 0.0,
    warmup: int = 0,
    accumulate: int = 1,
    clip: float = 1.0,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    checkpoint: str | Path | None = None,
    identity: Any = None,
) -> History:
    """Minimise `loss` over `batches` by AdamW (Loshchilov & Hutter 2019), in place.

    The module stays in the mode (training or evaluation) that it is in. Parameters of low precision
    are trained through a float32 copy: steps that are too small for them would be lost.

    Args:
        module: A torch module; of a loaded model, `model._module`.
        loss: (module, batch) → scalar.
        batches: A list, gone through again and again in an order drawn by the seed; or a function
            from 0, 1, 2, ... to a batch.
        steps: Steps of the optimiser.
        lr: Learning rate, or a function from the step to it.
        parameters: Names of what is trained, all by default; the others are frozen meanwhile.
        weight_decay: Of tensors with at least two axes.
        warmup: Over so many steps the rate rises linearly from 0.
        accumulate: Batches a step; their losses are averaged.
        clip: Largest norm of the gradient; 0 leaves it as it is.
        seed: Draws the order of batches and everything random inside of `loss`.
        on_step: Called after each step with the steps done and the loss.
        stop: Called after each step with the steps done; true ends the training.
        checkpoint: A file from which a stopped training goes on, and which is gone when it is done.
            Written every `CHECKPOINT_SECONDS`, or so many times as long as writing takes. One that
            is damaged is deleted, and the training starts anew.
        identity: Plain data that says which data and loss these are; another training's checkpoint
            is refused.

    Raises:
        UserError: There is nothing to train or to train on, or the checkpoint is of another
            training.
        DivergedError: The loss is not finite; the weights are then the last ones kept (every fourth
            step) for which it was.
    """
    if not callable(batches) and not len(batches):
        raise UserError("There is nothing to train on: give at least one batch.")
    if steps < 1 or accumulate < 1:
        raise UserError(f"steps is {steps} and accumulate {accumulate}: both are at least 1.")
    batch_at = batches if callable(batches) else lambda i: epoch_batch(batches, i, seed=seed)
    rate = lr if callable(lr) else lambda step: lr * min(1.0, (step + 1) / max(1, warmup))
    history = History()
    with (
        torch.enable_grad(),
        trainable(module, parameters) as found,
        _own_randomness(),
        _kept_memory(),
        bar("training", steps) as shown,
    ):
        state = _State(found, weight_decay)
        rates = "a function" if callable(lr) else lr
        about = content_hash(steps, rates, accumulate, clip, weight_decay, seed, identity)
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None:
            about = content_hash(about, list(found), [content_hash(p) for p in found.values()])
            history = state.resume(path, about)
        shown.update(history.steps)
        began = time.perf_counter() - history.seconds
        due = time.perf_counter() + CHECKPOINT_SECONDS
        while history.steps < steps and not history.stopped:
            step = history.steps
            total = 0.0
            for i in range(step * accumulate, (step + 1) * accumulate):
                torch.manual_seed((seed * 1_000_003 + i) % 2**63)
                value = loss(module, batch_at(i)) / accumulate
                total += value.item()
                if not math.isfinite(total):
                    raise DivergedError("loss", step, rate(step), state.back())
                value.backward()
            norm = state.gradient_norm(clip)
            if not math.isfinite(norm):
                raise DivergedError("gradient", step, rate(step), step)
            if step - state.good_at >= GOOD_EVERY:
                state.keep(step)
            state.step(rate(step))
            history.losses.append(total)
            history.norms.append(norm)
            shown.set_postfix(loss=total, refresh=False)
            shown.update()
            if on_step:
                on_step(step + 1, total)
            history.stopped = bool(stop and stop(step + 1))
            history.seconds = time.perf_counter() - began
            if path is not None and (now := time.perf_counter()) >= due:
                state.write(path, about, history)
                took = time.perf_counter() - now
                due = now + took + CHECKPOINT_SECONDS * max(1.0, took)
    if path is not None:
        path.unlink(missing_ok=True)
    return history


class _State:
    """The trained numbers in full precision, their optimiser, and the last good numbers."""

    def __init__(self, parameters: dict[str, nn.Parameter], weight_decay: float):
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.masters = [
            p if p.dtype in FULL_PRECISION else p.detach().float().requires_grad_()
            for p in self.parameters
        ]
        self.good, self.good_at = [m.detach().clone() for m in self.masters], 0
        groups = [
            {"params": [m for m in self.masters if m.ndim > 1], "weight_decay": weight_decay},
            {"params": [m for m in self.masters if m.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        fused = len({m.device for m in self.masters}) == 1
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, fused=fused)

    def gradient_norm(self, clip: float) -> float:
        for p, m in zip(self.parameters, self.masters, strict=True):
            if m is not p and p.grad is not None:
                m.grad, p.grad = p.grad.float(), None
        norm = nn.utils.clip_grad_norm_(self.masters, clip or math.inf)
        return norm.item()

    def keep(self, step: int) -> None:
        """Remember the numbers, for which the loss was finite."""
        with torch.no_grad():
            torch._foreach_copy_(self.good, self.masters)
        self.good_at = step

    def step(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._publish()

    def back(self) -> int:
        """Take the numbers that were kept last; returns of which step they are."""
        with torch.no_grad():
            torch._foreach_copy_(self.masters, self.good)
        self._publish()
        return self.good_at

    def _publish(self) -> None:
        with torch.no_grad():
            for p, m in zip(self.parameters, self.masters, strict=True):
                if m is not p:
                    p.copy_(m)

    def write(self, path: Path, about: str, history: History) -> None:
        tensors = {
            f"parameter.{n}": m.detach() for n, m in zip(self.names, self.masters, strict=True)
        }
        for name, m in zip(self.names, self.masters, strict=True):
            kept = self.optimiser.state[m]
            tensors |= {f"{k}.{name}": kept[k] for k in MOMENTS if k in kept}
        write_sealed(path, tensors, {"about": about, "history": json.dumps(vars(history))})

    def resume(self, path: Path, about: str) -> History:
        """Go on from a checkpoint.

        One that is damaged holds nothing that the training does not make again: it is deleted, with
        a line in the log.

        Raises:
            UserError: It is of another training.
        """
        if not path.exists():
            return History()
        try:
            tensors, notes = read_sealed(path)
        except DamagedError as error:
            log.warning("The training starts anew, as its checkpoint is of no use: %s", error)
            delete(path)
            return History()
        if notes.get("about") != about:
            raise UserError(
                f"{visible(path)} is of another training: name another file or delete it."
            )
        history = History(**json.loads(notes["history"]))
        with torch.no_grad():
            for name, m in zip(self.names, self.masters, strict=True):
                m.copy_(tensors[f"parameter.{name}"])
                if f"exp_avg.{name}" in tensors:
                    self.optimiser.state[m] = {
                        k: tensors[f"{k}.{name}"].to(m.device) for k in MOMENTS
                    }
        self.keep(history.steps)
        self._publish()
        log.info("Training goes on at step %d.", history.steps)
        return history


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """The caller's random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextlib.contextmanager
def _kept_memory() -> Iterator[None]:
    """What a step frees stays with the process for the next one; afterwards it goes back.

    The C library of GNU/Linux gives large blocks back to the system at once, and to get them anew,
    page by page, takes a sixth of a step of a small model; elsewhere nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:  # as glibc's own thresholds are once a block of the largest size was freed
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
        libc.malloc_trim(0)


def epoch_batch(batches: Sequence, i: int, *, seed: int) -> Any:
    """The i-th batch when every round goes through all of them in an order of its own."""
    turn, place = divmod(i, len(batches))
    order = np.random.default_rng([seed, turn]).permutation(len(batches))
    return batches[order[place]]


class DivergedError(UserError):
    """The loss or its gradient was not finite.

    Attributes:
        told: What happened and what to do, without what the weights are now.
    """

    def __init__(self, what: str, step: int, rate: float, kept: int):
        """Says of which step the weights are."""
        self.told = (
            f"The {what} was not finite at step {step}: lower the learning rate (it is {rate:g}), "
            "or add something that has to stay"
        )
        super().__init__(f"{self.told}; the weights are those of step {kept}.")
