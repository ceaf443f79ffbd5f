"""NPO: preference optimisation with what is to be forgotten as the answer that loses."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import label_logits, sum_per_sequence, token_losses


def npo_loss(
    nll: Float[Tensor, " b"], reference: Float[Tensor, " b"], *, beta: float
) -> Float[Tensor, ""]:
    """−(2/β) E log σ(β (s − s_ref)), s the NLL summed over an answer's tokens."""
    return -2 / beta * logsigmoid(beta * (nll - reference)).mean()


@dataclass(frozen=True)
class NPOHparams(TrainingConfig):
    """Hyperparameters of `npo`.

    Attributes:
        beta: Inverse temperature; the paper's 0.1.
        retain: Weight of L_R; 1 in the paper's NPO+GD.
    """

    beta: float = 1.0
    retain: float = 1.0


@training_method("npo")
def npo(task: UnlearningTask, hparams: NPOHparams) -> UnlearningLoss:
    """−(2/β) E log σ(β (s_F − s_F_ref)) + `retain` · L_R (Zhang et al. 2024, equation 3).

    As β goes to 0 it becomes gradient ascent. The ascent slows down once an example is unlikely
    enough against the original model.

    Args:
        task: What to forget.
    """
    reference = task.reference_sums(task.data.forget)

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        batch = step.forget
        nll = sum_per_sequence(token_losses(label_logits(task.model, batch), batch), batch)
        return npo_loss(
            nll, reference[batch.index], beta=hparams.beta
        ) + hparams.retain * task.retain_loss(step)

    return UnlearningLoss(loss)
