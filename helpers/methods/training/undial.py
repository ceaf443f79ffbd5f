"""UNDIAL: distil from the model itself with the answer's logit lowered."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.training.examples import label_logits, mean_per_sequence


def undial_loss(
    logits: Float[Tensor, "m vocab"],
    reference: Float[Tensor, "m vocab"],
    labels: Int[Tensor, " m"],
    *,
    beta: float,
) -> Float[Tensor, " m"]:
    """Compute the cross-entropy of each token to softmax(reference − β · onehot(label)), in nats.

    Args:
        logits: Present logits at the labels.
        reference: The original model's logits there.
        labels: Tokens of the answer.
        beta: How far the answer's logit is lowered.
    """
    lowered = reference - beta * torch.nn.functional.one_hot(labels, logits.shape[-1])
    return -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@dataclass(frozen=True)
class UNDIALHparams(TrainingConfig):
    """Hyperparameters of `undial`.

    Attributes:
        beta: How far the answer's logit is lowered; the paper's 10.
        retain_weight: Weight of L_R; the paper has none.
    """

    beta: float = 10.0
    retain_weight: float = 1.0


@training_method("undial", takes=("pair", "pairs", "text"))
def undial(task: UnlearningTask, hparams: UNDIALHparams) -> UnlearningLoss:
    """Minimise CE to softmax(original logits − β · onehot(answer)) + `retain_weight` · L_R.

    From Dong et al. 2024. Unlike ascent it has a distribution as its goal, and stops by itself.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    references = task.reference_logits(task.data.forget)

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        forget = batch.forget
        reference = torch.cat([references[i] for i in forget.index])
        labels = forget.label_ids.to(reference.device)
        logits = label_logits(task.model, forget)
        ce = mean_per_sequence(undial_loss(logits, reference, labels, beta=hparams.beta), forget)
        return ce.mean()

    return UnlearningLoss(forget_loss, task.retain_loss, hparams.retain_weight)
