"""Gradient difference: ascent on what is forgotten, descent on what is retained."""

from helpers.methods.training.recipe import Objective, Task, training_method


@training_method("gradient_difference")
def gradient_difference(task: Task, *, retain: float = 5.0) -> Objective:
    """−L_F + `retain` · L_R (Liu et al. 2022, "Continual Learning and Private Unlearning").

    Args:
        task: What to forget.
        retain: Weight of L_R; 1 in TOFU.
    """
    return Objective(lambda module, step: -task.forget_loss(step) + retain * task.retain_loss(step))
