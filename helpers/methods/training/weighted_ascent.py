"""Weighted gradient ascent: ascend less where the answer is unlikely already."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.training.examples import label_logits, mean_per_sequence, token_losses


def weighted(nll: Float[Tensor, " m"], *, beta: float) -> Float[Tensor, " m"]:
    """Compute p^β · NLL of each token, with no gradient through the weight."""
    return (-beta * nll.detach()).exp() * nll


@dataclass(frozen=True)
class WeightedAscentHparams(TrainingConfig):
    """Hyperparameters of `weighted_ascent`.

    Attributes:
        beta: Exponent of the weight; the paper's 1. 0 is gradient difference.
        retain_weight: Weight of L_R.
    """

    beta: float = 1.0
    retain_weight: float = 5.0


@training_method("weighted_ascent", takes=("pair", "pairs", "text"))
def weighted_ascent(task: UnlearningTask, hparams: WeightedAscentHparams) -> UnlearningLoss:
    """Minimise −E[p^β · NLL] + `retain_weight` · L_R: WGA (Wang et al. 2025).

    From "Rethinking LLM Unlearning Objectives".

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        forget = batch.forget
        nll = token_losses(label_logits(task.model, forget), forget)
        weighted_nll = mean_per_sequence(weighted(nll, beta=hparams.beta), forget)
        return -weighted_nll.mean()

    return UnlearningLoss(forget_loss, task.retain_loss, hparams.retain_weight)
