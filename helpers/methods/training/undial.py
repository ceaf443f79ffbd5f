"""UNDIAL: distil from the model itself with the answer's logit lowered."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import label_logits, mean_per_sequence


def undial_loss(
    now: Float[Tensor, "m vocab"],
    reference: Float[Tensor, "m vocab"],
    target: Int[Tensor, " m"],
    *,
    beta: float,
) -> Float[Tensor, " m"]:
    """Cross-entropy of each token to softmax(reference − β · onehot(target))."""
    lowered = reference - beta * torch.nn.functional.one_hot(target, now.shape[-1])
    return -(lowered.softmax(-1) * now.log_softmax(-1)).sum(-1)


@dataclass(frozen=True)
class UNDIALHparams(TrainingConfig):
    """Hyperparameters of `undial`.

    Attributes:
        beta: How far the answer's logit is lowered; the paper's 10.
        retain: Weight of L_R; the paper has none.
    """

    beta: float = 10.0
    retain: float = 1.0


@training_method("undial")
def undial(task: UnlearningTask, hparams: UNDIALHparams) -> UnlearningLoss:
    """CE to softmax(original logits − β · onehot(answer)) + `retain` · L_R (Dong et al. 2024).

    Unlike ascent it has a goal that is a distribution, and stops by itself.

    Args:
        task: What to forget.
    """
    references = task.reference_logits(task.data.forget)

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        batch = step.forget
        before = torch.cat([references[i] for i in batch.index])
        target = batch.target.to(before.device)
        found = undial_loss(label_logits(task.model, batch), before, target, beta=hparams.beta)
        found = mean_per_sequence(found, batch).mean()
        return found + hparams.retain * task.retain_loss(step) if hparams.retain else found

    return UnlearningLoss(loss)
