"""Gradient ascent: make what is to be forgotten unlikely, and look at nothing else."""

from helpers.methods.training.recipe import Objective, Task, training_method


@training_method("gradient_ascent", lr=1e-4, stop_at=0.2)
def gradient_ascent(task: Task) -> Objective:
    """−L_F (Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks").

    TOFU and MUSE train all parameters, 5 to 10 epochs at a rate of 1e-5. Nothing holds the rest of
    the model, and the loss has no floor: early stopping is what ends it.

    Args:
        task: What to forget.
    """
    return Objective(lambda module, step: -task.forget_loss(step))
