"""Weighted gradient ascent: ascend less where the answer is unlikely already."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import label_logits, mean_per_sequence, token_losses


def weighted(nll: Float[Tensor, " m"], *, beta: float) -> Float[Tensor, " m"]:
    """p^β · NLL of each token, with no gradient through the weight."""
    return (-beta * nll.detach()).exp() * nll


@dataclass(frozen=True)
class WeightedAscentHparams(TrainingConfig):
    """Hyperparameters of `weighted_ascent`.

    Attributes:
        beta: Exponent of the weight; the paper's 1. 0 is gradient difference.
        retain: Weight of L_R.
    """

    beta: float = 1.0
    retain: float = 5.0


@training_method("weighted_ascent")
def weighted_ascent(task: UnlearningTask, hparams: WeightedAscentHparams) -> UnlearningLoss:
    """−E[p^β · NLL] + `retain` · L_R: WGA (Wang et al. 2025).

    From "Rethinking LLM Unlearning Objectives".

    Args:
        task: What to forget.
    """

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        batch = step.forget
        nll = token_losses(label_logits(task.model, batch), batch)
        found = -mean_per_sequence(weighted(nll, beta=hparams.beta), batch).mean()
        return found + hparams.retain * task.retain_loss(step)

    return UnlearningLoss(loss)
