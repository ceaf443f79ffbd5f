"""KL minimisation: ascent on the answers to forget, the original's distribution elsewhere."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.training.examples import label_logits, mean_per_sequence


def kl_to_reference(
    logits: Float[Tensor, "m vocab"], reference: Float[Tensor, "m vocab"]
) -> Float[Tensor, " m"]:
    """Compute KL(reference ‖ present) of each token in nats, from logits."""
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@dataclass(frozen=True)
class KLMinimisationHparams(TrainingConfig):
    """Hyperparameters of `kl_minimisation`.

    Attributes:
        retain_weight: Weight of the KL divergence.
    """

    retain_weight: float = 10.0


@training_method("kl_minimisation", takes=("pair", "pairs", "text"))
def kl_minimisation(task: UnlearningTask, hparams: KLMinimisationHparams) -> UnlearningLoss:
    """Minimise −L_F + `retain_weight` · E KL(original ‖ present) (TOFU, Maini et al. 2024).

    The divergence is of the examples to retain. Both sides are log-softmaxed, and the original
    stands first, as in TOFU's text and code.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    references = task.reference_logits(task.data.retain)

    def retain_loss(batch: ForgetRetainBatch) -> Tensor | float:
        if batch.retain is None:
            return 0.0
        reference = torch.cat([references[i] for i in batch.retain.index])
        kl = kl_to_reference(label_logits(task.model, batch.retain), reference)
        return mean_per_sequence(kl, batch.retain).mean()

    return UnlearningLoss(
        lambda batch: -task.forget_loss(batch), retain_loss, hparams.retain_weight
    )
