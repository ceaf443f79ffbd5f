"""KL minimisation: ascent on what is forgotten, the original's distribution on what is retained."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import label_logits, mean_per_sequence


def kl_to_reference(
    now: Float[Tensor, "m vocab"], reference: Float[Tensor, "m vocab"]
) -> Float[Tensor, " m"]:
    """KL(reference ‖ now) of each token in nats, from logits."""
    p, q = reference.log_softmax(-1), now.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@dataclass(frozen=True)
class KLMinimisationHparams(TrainingConfig):
    """Hyperparameters of `kl_minimisation`.

    Attributes:
        retain: Weight of the KL divergence.
    """

    retain: float = 10.0


@training_method("kl_minimisation")
def kl_minimisation(task: UnlearningTask, hparams: KLMinimisationHparams) -> UnlearningLoss:
    """−L_F + `retain` · E KL(original ‖ now) on what is retained (TOFU, Maini et al. 2024).

    Both sides are log-softmaxed, and the original stands first, as in TOFU's text and code.

    Args:
        task: What to forget.
    """
    references = task.reference_logits(task.data.retain)

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        found = -task.forget_loss(step)
        if step.retain is not None:
            before = torch.cat([references[i] for i in step.retain.index])
            kl = kl_to_reference(label_logits(task.model, step.retain), before)
            found = found + hparams.retain * mean_per_sequence(kl, step.retain).mean()
        return found

    return UnlearningLoss(loss)
