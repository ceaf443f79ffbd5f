"""Task vector: learn what is to be forgotten, and go the other way."""

from helpers.methods.training.recipe import Objective, Task, training_method


@training_method("task_vector", steps=12, lr=2e-5)
def task_vector(task: Task, *, alpha: float = 5.0) -> Objective:
    """θ − α (θ_finetuned − θ), fine-tuned by L_F (Ilharco et al. 2023).

    Args:
        task: What to forget.
        alpha: How far the other way; MUSE's 5.
    """
    return Objective(lambda module, step: task.forget_loss(step), share=-alpha, early=False)
