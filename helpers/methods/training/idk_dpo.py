"""DPO toward a refusal: the refusal wins against the answer."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from helpers.methods.training.idk import refusals
from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import Batch, collate, label_logits, sum_per_sequence, token_losses

Row = Float[Tensor, " b"]


def dpo_loss(
    win: Row, lose: Row, win_reference: Row, lose_reference: Row, *, beta: float
) -> Float[Tensor, ""]:
    """−(2/β) E log σ(β ((lose − lose_ref) − (win − win_ref))), each an NLL summed over tokens."""
    margin = (lose - lose_reference) - (win - win_reference)
    return -2 / beta * logsigmoid(beta * margin).mean()


@dataclass(frozen=True)
class IDKDPOHparams(TrainingConfig):
    """Hyperparameters of `idk_dpo`.

    Attributes:
        beta: Inverse temperature.
        retain: Weight of L_R.
    """

    lr: float = 0.0001
    beta: float = 0.1
    retain: float = 1.0


@training_method("idk_dpo")
def idk_dpo(task: UnlearningTask, hparams: IDKDPOHparams) -> UnlearningLoss:
    """DPO with the refusal preferred to the answer, + `retain` · L_R (Rafailov et al. 2023).

    As the preference baseline of TOFU and of Zhang et al. 2024, whose factor 2/β it has.

    Args:
        task: What to forget.
    """
    told = refusals(task)
    lose_reference = task.reference_sums(task.data.forget)
    win_reference = task.reference_sums(told)

    def nll(batch: Batch) -> Row:
        return sum_per_sequence(token_losses(label_logits(task.model, batch), batch), batch)

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        at = step.forget.index
        win, lose = nll(collate(told, at.tolist())), nll(step.forget)
        found = dpo_loss(win, lose, win_reference[at], lose_reference[at], beta=hparams.beta)
        return found + hparams.retain * task.retain_loss(step)

    return UnlearningLoss(loss)
