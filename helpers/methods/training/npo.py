"""NPO: preference optimisation in which the answers to forget lose."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.training.examples import label_logits, sum_per_sequence, token_losses


def npo_loss(
    nll: Float[Tensor, " b"], reference: Float[Tensor, " b"], *, beta: float
) -> Float[Tensor, ""]:
    """Compute −(2/β) E log σ(β (s − s_ref)), s the NLL summed over an answer's tokens."""
    return -2 / beta * logsigmoid(beta * (nll - reference)).mean()


@dataclass(frozen=True)
class NPOHparams(TrainingConfig):
    """Hyperparameters of `npo`.

    Attributes:
        beta: Inverse temperature; the paper's 0.1.
        retain_weight: Weight of L_R; 1 in the paper's NPO+GD.
    """

    beta: float = 1.0
    retain_weight: float = 1.0


@training_method("npo", takes=("pair", "pairs", "text"))
def npo(task: UnlearningTask, hparams: NPOHparams) -> UnlearningLoss:
    """Minimise −(2/β) E log σ(β (s_F − s_F_ref)) + `retain_weight` · L_R.

    NPO is equation 3 of Zhang et al. 2024.

    As β goes to 0 it becomes gradient ascent. The ascent slows down once an example is unlikely
    enough against the original model.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    references = task.reference_sums(task.data.forget)

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        forget = batch.forget
        nll = sum_per_sequence(token_losses(label_logits(task.model, forget), forget), forget)
        return npo_loss(nll, references[forget.index], beta=hparams.beta)

    return UnlearningLoss(forget_loss, task.retain_loss, hparams.retain_weight)
