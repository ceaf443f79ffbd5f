"""Gradient difference: ascent on the answers to forget, descent on the examples to retain."""

from dataclasses import dataclass

from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)


@dataclass(frozen=True)
class GradientDifferenceHparams(TrainingConfig):
    """Hyperparameters of `gradient_difference`.

    Attributes:
        retain_weight: Weight of L_R; 1 in TOFU.
    """

    retain_weight: float = 5.0


@training_method("gradient_difference", takes=("pair", "pairs", "text"))
def gradient_difference(task: UnlearningTask, hparams: GradientDifferenceHparams) -> UnlearningLoss:
    """Minimise −L_F + `retain_weight` · L_R (Liu et al. 2022).

    From "Continual Learning and Private Unlearning".

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    return UnlearningLoss(
        lambda batch: -task.forget_loss(batch), task.retain_loss, hparams.retain_weight
    )
