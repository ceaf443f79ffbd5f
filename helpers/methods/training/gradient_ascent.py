"""Gradient ascent: make what is to be forgotten unlikely, and look at nothing else."""

from dataclasses import dataclass

from helpers.methods.training.recipe import (
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)


@dataclass(frozen=True)
class GradientAscentHparams(TrainingConfig):
    """Hyperparameters of `gradient_ascent`."""

    lr: float = 0.0001
    stop_at: float = 0.2


@training_method("gradient_ascent")
def gradient_ascent(task: UnlearningTask, hparams: GradientAscentHparams) -> UnlearningLoss:
    """−L_F (Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks").

    TOFU and MUSE train all parameters, 5 to 10 epochs at a rate of 1e-5. Nothing holds the rest of
    the model, and the loss has no floor: early stopping is what ends it.

    Args:
        task: What to forget.
    """
    return UnlearningLoss(lambda module, step: -task.forget_loss(step))
