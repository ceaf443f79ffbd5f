"""SimNPO: NPO without a reference model, by length-normalised likelihood."""

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
from helpers.training.examples import label_logits, mean_per_sequence, token_losses


def simnpo_loss(mean_nll: Float[Tensor, " b"], *, beta: float, delta: float) -> Float[Tensor, ""]:
    """−(2/β) E log σ(β (s/length − δ))."""
    return -2 / beta * logsigmoid(beta * (mean_nll - delta)).mean()


@dataclass(frozen=True)
class SimNPOHparams(TrainingConfig):
    """Hyperparameters of `simnpo`.

    Attributes:
        beta: 4.5 on TOFU's 10 % split in the authors' code, 2.5 on its 5 % split.
        delta: Margin; the paper's γ over β, 0.
        forget: Weight of the first term; 0.125 to 0.1375 in the authors' code, too little here.
        retain: Weight of L_R.
    """

    beta: float = 4.5
    delta: float = 0.0
    forget: float = 1.0
    retain: float = 1.0


@training_method("simnpo")
def simnpo(task: UnlearningTask, hparams: SimNPOHparams) -> UnlearningLoss:
    """`forget` · −(2/β) E log σ(β (s_F/length − δ)) + `retain` · L_R (Fan et al. 2024).

    Args:
        task: What to forget.
    """

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        batch = step.forget
        nll = mean_per_sequence(token_losses(label_logits(task.model, batch), batch), batch)
        found = hparams.forget * simnpo_loss(nll, beta=hparams.beta, delta=hparams.delta)
        return found + hparams.retain * task.retain_loss(step)

    return UnlearningLoss(loss)
