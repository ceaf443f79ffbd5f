"""IDK: train on refusals in the answers' place."""

from dataclasses import dataclass

from torch import Tensor

from helpers.methods.training.recipe import training_method
from helpers.methods.training.refusals import refusal_examples
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.training.examples import collate, mean_loss


@dataclass(frozen=True)
class IDKHparams(TrainingConfig):
    """Hyperparameters of `idk`.

    Attributes:
        retain_weight: Weight of L_R; 1 in TOFU.
    """

    retain_weight: float = 5.0


@training_method("idk", takes=("pair", "pairs"))
def idk(task: UnlearningTask, hparams: IDKHparams) -> UnlearningLoss:
    """Minimise L of refusals + `retain_weight` · L_R (TOFU, Maini et al. 2024).

    TOFU's questions are answered with one of a hundred sentences such as "I don't know". Our
    prompts are half sentences, so the refusals (`helpers.methods.training.refusals`) complete them.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    refusals = refusal_examples(task)

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        return mean_loss(task.model, collate(refusals, batch.forget.index.tolist()))

    return UnlearningLoss(forget_loss, task.retain_loss, hparams.retain_weight)
