"""The choice of a robustness wrapper, and its application to a method's loss."""

from collections.abc import Callable

from helpers.errors import UserError
from helpers.io.choices import check_number, suggestion
from helpers.io.safe_text import visible
from helpers.methods.training.robust.ilu import ilu
from helpers.methods.training.robust.lat import lat
from helpers.methods.training.robust.layered import layered
from helpers.methods.training.robust.sam import sam
from helpers.methods.training.task import TrainingConfig, UnlearningLoss, UnlearningTask

OF_LOSSES = {"sam": sam, "lat": lat, "ilu": ilu}
LAYERED = "layered"
WRAPPERS = (*OF_LOSSES, LAYERED)


def check_robust(config: TrainingConfig) -> None:
    """Refuse a wrapper that does not exist, and its hyperparameters out of range.

    Raises:
        UserError: Says which one, and what to choose.
    """
    if config.robust and config.robust not in WRAPPERS:
        hint = suggestion(config.robust, WRAPPERS)
        raise UserError(f"There is no wrapper (robust) '{visible(config.robust)}'{hint}.")
    check_number("sam_rho", config.sam_rho, 0, 1e4)
    check_number("lat_epsilon", config.lat_epsilon, 0, 1e4)
    check_number("lat_steps", config.lat_steps, 1, 1e4)
    check_number("ilu_weight", config.ilu_weight, 0, 1e9)
    check_number("layered_folds", config.layered_folds, 2, 1e4)
    if config.robust == LAYERED and config.steps < config.layered_folds:
        raise UserError(
            f"steps is {config.steps}: choose at least one for each of {config.layered_folds} "
            "folds (layered_folds)."
        )


def robust_losses(
    task: UnlearningTask, prepare: Callable[[UnlearningTask], UnlearningLoss]
) -> tuple[list[UnlearningTask], list[UnlearningLoss]]:
    """Return the task and loss of each stage of the training, wrapped as configured.

    Args:
        task: The whole task.
        prepare: The method: task → its loss.

    Raises:
        UserError: The wrapper cannot be applied to the method.
    """
    robust = task.config.robust
    tasks = layered(task) if robust == LAYERED else [task]
    losses = [prepare(stage) for stage in tasks]
    if robust and any(loss.delta_scale != 1 for loss in losses):
        raise UserError(
            "This method trains on the fact and subtracts the change, so there is no forgetting "
            "to make robust: leave 'robust' empty, or choose another method."
        )
    if robust == LAYERED and not all(loss.retains for loss in losses):
        raise UserError(
            "This method retains nothing, and layered unlearning retains the prompts of later "
            "folds: give it a positive retain_weight, or choose a method that has one."
        )
    if robust in OF_LOSSES:
        losses = [OF_LOSSES[robust](task, loss) for loss in losses]
    return tasks, losses
