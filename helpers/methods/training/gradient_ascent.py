"""Gradient ascent: make the answers to forget unlikely, without regard to anything else."""

from dataclasses import dataclass

from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)


@dataclass(frozen=True)
class GradientAscentHparams(TrainingConfig):
    """Hyperparameters of `gradient_ascent`."""

    lr: float = 0.0001
    early_stop_ratio: float = 0.2


@training_method("gradient_ascent", takes=("pair", "pairs", "text"))
def gradient_ascent(task: UnlearningTask, hparams: GradientAscentHparams) -> UnlearningLoss:
    """Minimise −L_F (Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks").

    TOFU and MUSE train all parameters, 5 to 10 epochs at a rate of 1e-5. Nothing preserves the rest
    of the model, and the loss has no minimum: early stopping ends the training.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    return UnlearningLoss(lambda batch: -task.forget_loss(batch))
