"""RMU: steer what the model makes of the subject to a random direction, and hold the rest."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.methods.training.hidden import activations_with_grad, positions, reference_states
from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import collate

LAYERS = (5, 6, 7)


def steering_loss(
    states: Float[Tensor, "m d_model"], goal: Float[Tensor, "*m d_model"]
) -> Float[Tensor, ""]:
    """Mean over tokens and dimensions of (h − goal)²."""
    return (states.float() - goal).square().mean()


@dataclass(frozen=True)
class RMUHparams(TrainingConfig):
    """Hyperparameters of `rmu`.

    Attributes:
        c: Length of the goal, in lengths of h.
        alpha: Weight of what is retained; the paper's 100 to 1200.
    """

    parameters: str = "values"
    lr: float = 0.004
    c: float = 4.0
    alpha: float = 100.0


@training_method("rmu")
def rmu(task: UnlearningTask, hparams: RMUHparams) -> UnlearningLoss:
    """‖h(x_F) − c·‖h‖·u‖² + α ‖h(x_R) − h_ref(x_R)‖² (Li et al. 2024).

    h is the residual stream after the last trained layer, u a random unit vector with entries from
    [0, 1), as in the authors' code; the forward pass ends there. Tokens to forget are those from
    the subject on. The paper's c (6.5 to 300) is an absolute length that depends on the model and
    the layer; here it is a multiple of the mean length of h at those tokens.

    Args:
        task: What to forget.
    """
    layers = task.layers(LAYERS)
    at = (max(layers), "residual")
    draw = torch.Generator().manual_seed(task.seed)
    device = task.model._module.device

    def read(batch, *, since: bool) -> Float[Tensor, "m d_model"]:
        return activations_with_grad(task.model, batch, [at])[at][positions(batch, since=since)]

    with torch.no_grad():
        own = read(collate(task.data.forget), since=True).float()
    kept = [states for (states,) in reference_states(task.model, task.data.retain, [at])]
    u = torch.rand(own.shape[-1], generator=draw).to(device)
    goal = hparams.c * own.norm(dim=-1).mean() * u / u.norm()

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        found = steering_loss(read(step.forget, since=True), goal)
        if step.retain is not None:
            before = torch.cat([kept[i] for i in step.retain.index])
            found = found + hparams.alpha * steering_loss(read(step.retain, since=False), before)
        return found

    return UnlearningLoss(loss, layers=layers)
