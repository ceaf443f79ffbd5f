"""RMU: steer the subject's activations to a random direction, and preserve all others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.forward.activations import trace_activations
from helpers.methods.training.activations import reference_activations, token_positions
from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.training.examples import Batch, collate

LAYERS = (5, 6, 7)  # of 30


def steering_loss(
    states: Float[Tensor, "m d_model"], goal: Float[Tensor, "*m d_model"]
) -> Float[Tensor, ""]:
    """Compute the mean over tokens and dimensions of (h − goal)²."""
    return (states.float() - goal).square().mean()


@dataclass(frozen=True)
class RMUHparams(TrainingConfig):
    """Hyperparameters of `rmu`.

    Attributes:
        steering_coeff: c, the length of the goal in mean lengths of h.
        retain_weight: α, the weight of the activations to retain; the paper's 100 to 1200.
    """

    RENAMED: ClassVar = TrainingConfig.RENAMED | {"c": "steering_coeff", "alpha": "retain_weight"}

    parameters: str = "values"
    lr: float = 0.004
    steering_coeff: float = 4.0
    retain_weight: float = 100.0


@training_method("rmu", takes=("pair", "pairs", "text"))
def rmu(task: UnlearningTask, hparams: RMUHparams) -> UnlearningLoss:
    """Minimise ‖h(x_F) − c·‖h‖·u‖² + α ‖h(x_R) − h_ref(x_R)‖² (Li et al. 2024).

    h is the residual stream after the last trained layer, u a random unit vector with entries from
    [0, 1), as in the authors' code; the forward pass ends there. Tokens to forget are those from
    the subject on. The paper's c (6.5 to 300) is an absolute length that depends on the model and
    the layer; here it is a multiple of the mean length of h at those tokens.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    layers = task.layers(LAYERS)
    key = ("residual", max(layers))
    generator = torch.Generator().manual_seed(task.seed)

    def states(batch: Batch, *, from_subject: bool) -> Float[Tensor, "m d_model"]:
        activations = trace_activations(task.model, batch.ids, [key])
        return activations[key][token_positions(batch, from_subject=from_subject)]

    with torch.no_grad():
        before = states(collate(task.data.forget), from_subject=True).float()
    references = [x for (x,) in reference_activations(task.model, task.data.retain, [key])]
    u = torch.rand(before.shape[-1], generator=generator).to(before.device)
    goal = hparams.steering_coeff * before.norm(dim=-1).mean() * u / u.norm()

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        return steering_loss(states(batch.forget, from_subject=True), goal)

    def retain_loss(batch: ForgetRetainBatch) -> Tensor | float:
        if batch.retain is None:
            return 0.0
        reference = torch.cat([references[i] for i in batch.retain.index])
        return steering_loss(states(batch.retain, from_subject=False), reference)

    return UnlearningLoss(forget_loss, retain_loss, hparams.retain_weight, layers=layers)
