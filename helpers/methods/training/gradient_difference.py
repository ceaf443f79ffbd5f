"""Gradient difference: ascent on what is forgotten, descent on what is retained."""

from dataclasses import dataclass

from helpers.methods.training.recipe import (
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)


@dataclass(frozen=True)
class GradientDifferenceHparams(TrainingConfig):
    """Hyperparameters of `gradient_difference`.

    Attributes:
        retain: Weight of L_R; 1 in TOFU.
    """

    retain: float = 5.0


@training_method("gradient_difference")
def gradient_difference(task: UnlearningTask, hparams: GradientDifferenceHparams) -> UnlearningLoss:
    """−L_F + `retain` · L_R (Liu et al. 2022, "Continual Learning and Private Unlearning").

    Args:
        task: What to forget.
    """
    return UnlearningLoss(
        lambda module, step: -task.forget_loss(step) + hparams.retain * task.retain_loss(step)
    )
