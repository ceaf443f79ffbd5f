"""The gradient loop of methods that train, of relearning attacks, and of models from scratch.

Batches and random numbers are functions of the seed and the step. So a training that was stopped
and resumes from its checkpoint computes the same numbers as one that was not stopped.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.io.hashing import content_hash
from helpers.io.progress_bar import bar
from helpers.models.parameters import choose_parameters, trainable
from helpers.training.state import MAX_GRAD_NORM, Checkpoint, History, TrainingState

__all__ = ["History", "choose_parameters", "train", "trainable"]

Loss = Callable[[nn.Module, Any], Tensor]
SNAPSHOT_EVERY = 4  # steps between two snapshots for a rollback: each costs a step some 3 %


def train(
    module: nn.Module,
    loss: Loss,
    batches: Sequence | Callable[[int], Any],
    *,
    steps: int,
    lr: float | Callable[[int], float],
    parameters: Sequence[str] | None = None,
    weight_decay: float = 0.0,
    gradient_accumulation_steps: int = 1,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    checkpoint: str | Path | None = None,
    identity: Any = None,
) -> History:
    """Minimise `loss` over `batches` by AdamW (Loshchilov & Hutter 2019), in place.

    The module stays in its mode (training or evaluation). Parameters of low precision are trained
    through a float32 copy, since steps that are too small for them would be lost. Gradients are
    clipped to the norm `MAX_GRAD_NORM`.

    Args:
        module: A torch module; of a loaded model, `torch_module(model)`.
        loss: (module, batch) → scalar.
        batches: A list, all of which is used again and again in an order drawn by the seed; or a
            function from 0, 1, 2, ... to a batch.
        steps: Steps of the optimiser.
        lr: Learning rate, or a function from the step to it.
        parameters: Names of the trained parameters, all by default; the others are frozen
            meanwhile.
        weight_decay: Decay of tensors with at least two axes.
        gradient_accumulation_steps: Batches a step; their losses are averaged.
        seed: Draws the order of batches and everything random inside `loss`.
        on_step: Called after each step with the number of steps done and the loss.
        stop: Called after each step with the number of steps done; true ends the training.
        checkpoint: A file from which a stopped training resumes, and which is deleted when it is
            done. Written every `CHECKPOINT_SECONDS`, or every 60 times the time that one write
            takes, whichever is longer. A damaged one is deleted, and the training starts anew.
        identity: Plain data that says which data and loss these are; another training's checkpoint
            is refused.

    Raises:
        UserError: There is nothing to train or to train on, or the checkpoint is of another
            training.
        DivergedError: The loss is not finite. The weights are then those of the last snapshot
            (every fourth step), for which it was.
    """
    if not callable(batches) and not len(batches):
        raise UserError("There is nothing to train on: give at least one batch.")
    if steps < 1 or gradient_accumulation_steps < 1:
        raise UserError(
            f"steps is {steps} and gradient_accumulation_steps {gradient_accumulation_steps}: "
            "both are at least 1."
        )
    batch_at = batches if callable(batches) else lambda i: epoch_batch(batches, i, seed=seed)
    lr_at = lr if callable(lr) else lambda step: lr
    with (
        torch.enable_grad(),
        trainable(module, parameters) as trained,
        forked_rng(),
        bar("training", steps) as progress,
    ):
        state = TrainingState(trained, weight_decay)
        run_id = content_hash(
            steps,
            "a function" if callable(lr) else lr,
            gradient_accumulation_steps,
            MAX_GRAD_NORM,
            weight_decay,
            seed,
            identity,
        )
        file = None if checkpoint is None else Checkpoint(Path(checkpoint), run_id, trained)
        history = file.resume(state) if file else History()
        progress.update(history.steps)
        start_time = time.perf_counter() - history.seconds
        while history.steps < steps and not history.stopped:
            step = history.steps
            mean_loss = _backward(module, loss, batch_at, step, gradient_accumulation_steps, seed)
            if not math.isfinite(mean_loss):
                raise DivergedError("loss", step, lr_at(step), state.rollback())
            norm = state.clipped_gradient_norm()
            if not math.isfinite(norm):
                raise DivergedError("gradient", step, lr_at(step), step)
            if step - state.snapshot_step >= SNAPSHOT_EVERY:
                state.take_snapshot(step)
            state.step(lr_at(step))
            history.losses.append(mean_loss)
            history.norms.append(norm)
            progress.set_postfix(loss=mean_loss, refresh=False)
            progress.update()
            if on_step:
                on_step(step + 1, mean_loss)
            history.stopped = bool(stop and stop(step + 1))
            history.seconds = time.perf_counter() - start_time
            if file:
                file.write_if_due(state, history)
    if file:
        file.delete()
    return history


def _backward(
    module: nn.Module,
    loss: Loss,
    batch_at: Callable[[int], Any],
    step: int,
    n_batches: int,
    seed: int,
) -> float:
    """Add up the gradients of one step's batches; return their mean loss.

    It stops at a loss that is not finite, whose gradients are not computed.
    """
    total = 0.0
    for i in range(step * n_batches, (step + 1) * n_batches):
        # Random numbers depend on the batch alone, so a resumed training draws the same.
        torch.manual_seed((seed * 1_000_003 + i) % 2**63)
        value = loss(module, batch_at(i)) / n_batches
        total += value.item()
        if not math.isfinite(total):
            return total
        value.backward()
    return total


@contextlib.contextmanager
def forked_rng() -> Iterator[None]:
    """Restore the caller's random state when the `with` block ends."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def epoch_batch(batches: Sequence, step: int, *, seed: int) -> Any:
    """Return the batch of a step, where each epoch visits all batches in an order of its own.

    Args:
        batches: The batches of an epoch.
        step: Number of the step, over all epochs.
        seed: Draws the orders.
    """
    epoch, place = divmod(step, len(batches))
    order = np.random.default_rng([seed, epoch]).permutation(len(batches))
    return batches[order[place]]


class DivergedError(UserError):
    """The loss or its gradient was not finite.

    Attributes:
        reason: The first part of the sentence, which does not say what the weights are now.
    """

    def __init__(self, quantity: str, step: int, lr: float, weights_step: int):
        """Compose the sentence.

        Args:
            quantity: `loss` or `gradient`.
            step: The step at which it was not finite.
            lr: The learning rate there.
            weights_step: The step of the weights that the model has now.
        """
        self.reason = (
            f"The {quantity} was not finite at step {step}: lower the learning rate (it is {lr:g})"
            ", or add something that has to stay"
        )
        super().__init__(f"{self.reason}; the weights are those of step {weights_step}.")
