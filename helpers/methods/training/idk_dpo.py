"""DPO toward a refusal: the refusal is preferred to the answer."""

from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from helpers.methods.training.recipe import training_method
from helpers.methods.training.refusals import refusal_examples
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.training.examples import Batch, collate, label_logits, sum_per_sequence, token_losses

PerSequence: TypeAlias = Float[Tensor, " b"]


def dpo_loss(
    win: PerSequence,
    lose: PerSequence,
    win_reference: PerSequence,
    lose_reference: PerSequence,
    *,
    beta: float,
) -> Float[Tensor, ""]:
    """Compute −(2/β) E log σ(β ((lose − lose_ref) − (win − win_ref))).

    Args:
        win: NLL of the preferred answers, summed over tokens, in nats.
        lose: NLL of the answers to forget, summed over tokens.
        win_reference: The same as `win` from the original model.
        lose_reference: The same as `lose` from the original model.
        beta: Inverse temperature.
    """
    margin = (lose - lose_reference) - (win - win_reference)
    return -2 / beta * logsigmoid(beta * margin).mean()


@dataclass(frozen=True)
class IDKDPOHparams(TrainingConfig):
    """Hyperparameters of `idk_dpo`.

    Attributes:
        beta: Inverse temperature.
        retain_weight: Weight of L_R.
    """

    lr: float = 0.0001
    beta: float = 0.1
    retain_weight: float = 1.0


@training_method("idk_dpo", takes=("pair", "pairs"))
def idk_dpo(task: UnlearningTask, hparams: IDKDPOHparams) -> UnlearningLoss:
    """Minimise DPO's loss, refusal preferred to answer, + `retain_weight` · L_R (Rafailov 2023).

    It is the preference baseline of TOFU and of Zhang et al. 2024, and has the latter's factor 2/β.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    refusals = refusal_examples(task)
    lose_reference = task.reference_sums(task.data.forget)
    win_reference = task.reference_sums(refusals)

    def nll(batch: Batch) -> PerSequence:
        return sum_per_sequence(token_losses(label_logits(task.model, batch), batch), batch)

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        index = batch.forget.index
        win, lose = nll(collate(refusals, index.tolist())), nll(batch.forget)
        return dpo_loss(win, lose, win_reference[index], lose_reference[index], beta=hparams.beta)

    return UnlearningLoss(forget_loss, task.retain_loss, hparams.retain_weight)
