"""The stages of a training, each with its own loss and data; all but `layered` have one."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from helpers.methods.training.data import BatchSchedule
from helpers.methods.training.task import ForgetRetainBatch, UnlearningLoss, UnlearningTask


class Stages:
    """Losses that follow one another in equal shares of the steps.

    Attributes:
        config: The hyperparameters.
        losses: The loss of each stage.
    """

    def __init__(self, tasks: Sequence[UnlearningTask], losses: Sequence[UnlearningLoss]):
        """Schedule the batches of each stage.

        Args:
            tasks: The input of each stage, which has its examples.
            losses: The loss of each stage.
        """
        self.config, self.losses = tasks[0].config, losses
        size, seed = self.config.batch_size, tasks[0].seed
        self._forget = [BatchSchedule(t.data.forget, size, seed=seed) for t in tasks]
        self._retain = [
            BatchSchedule(t.data.retain, size, seed=seed + 1) if t.data.retain else None
            for t in tasks
        ]

    def index(self, step: int) -> int:
        """Return the stage of a step (0, 1, ...)."""
        return step * len(self.losses) // self.config.steps

    def loss(self, i: int) -> Float[Tensor, ""]:
        """Compute the loss of forward pass `i`, counted over all steps and stages."""
        stage = self.index(i // self.config.gradient_accumulation_steps)
        retain = self._retain[stage]
        batch = ForgetRetainBatch(self._forget[stage].batch(i), retain.batch(i) if retain else None)
        return self.losses[stage].loss(batch)

    def only_in_last(self, stop: Callable[[int], bool]) -> Callable[[int], bool]:
        """Return early stopping that waits for the last stage, the first to forget everything.

        Args:
            stop: Number of steps done → whether the training ends.
        """
        last = len(self.losses) - 1
        return lambda n_done: self.index(n_done - 1) == last and stop(n_done)
