"""Task vector: learn what is to be forgotten, and go the other way."""

from dataclasses import dataclass

from helpers.methods.training.recipe import (
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)


@dataclass(frozen=True)
class TaskVectorHparams(TrainingConfig):
    """Hyperparameters of `task_vector`.

    Attributes:
        alpha: How far the other way; MUSE's 5.
    """

    steps: int = 12
    lr: float = 2e-05
    alpha: float = 5.0


@training_method("task_vector")
def task_vector(task: UnlearningTask, hparams: TaskVectorHparams) -> UnlearningLoss:
    """θ − α (θ_finetuned − θ), fine-tuned by L_F (Ilharco et al. 2023).

    Args:
        task: What to forget.
    """
    return UnlearningLoss(
        lambda module, step: task.forget_loss(step), share=-hparams.alpha, early=False
    )
