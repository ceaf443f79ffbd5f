"""Task vector: fine-tune on the answers to forget, and subtract the change."""

from dataclasses import dataclass

from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)


@dataclass(frozen=True)
class TaskVectorHparams(TrainingConfig):
    """Hyperparameters of `task_vector`.

    Attributes:
        alpha: Multiple of the change that is subtracted; MUSE's 5.
    """

    steps: int = 12
    lr: float = 2e-05
    alpha: float = 5.0


@training_method("task_vector", takes=("pair", "pairs", "text"))
def task_vector(task: UnlearningTask, hparams: TaskVectorHparams) -> UnlearningLoss:
    """Edit to θ − α (θ_finetuned − θ), fine-tuned by L_F (Ilharco et al. 2023).

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    return UnlearningLoss(
        task.forget_loss,
        delta_scale=-hparams.alpha,
        early_stopping=False,
    )
