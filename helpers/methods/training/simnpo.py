"""SimNPO: NPO without a reference model, by length-normalised likelihood."""

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
from helpers.training.examples import label_logits, mean_per_sequence, token_losses


def simnpo_loss(mean_nll: Float[Tensor, " b"], *, beta: float, delta: float) -> Float[Tensor, ""]:
    """Compute −(2/β) E log σ(β (s/length − δ)), s/length the mean token NLL of an answer."""
    return -2 / beta * logsigmoid(beta * (mean_nll - delta)).mean()


@dataclass(frozen=True)
class SimNPOHparams(TrainingConfig):
    """Hyperparameters of `simnpo`.

    Attributes:
        beta: 4.5 on TOFU's 10 % split in the authors' code, 2.5 on its 5 % split.
        delta: Margin; the paper's γ over β, 0.
        forget_weight: Weight of the first term; 0.125 to 0.1375 in the authors' code, too little
            here.
        retain_weight: Weight of L_R.
    """

    beta: float = 4.5
    delta: float = 0.0
    forget_weight: float = 1.0
    retain_weight: float = 1.0


@training_method("simnpo", takes=("pair", "pairs", "text"))
def simnpo(task: UnlearningTask, hparams: SimNPOHparams) -> UnlearningLoss:
    """Minimise `forget_weight` · −(2/β) E log σ(β (s_F/length − δ)) + `retain_weight` · L_R.

    From Fan et al. 2024, "Simplicity Prevails".

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        forget = batch.forget
        nll = mean_per_sequence(token_losses(label_logits(task.model, forget), forget), forget)
        simnpo_term = simnpo_loss(nll, beta=hparams.beta, delta=hparams.delta)
        return hparams.forget_weight * simnpo_term

    return UnlearningLoss(forget_loss, task.retain_loss, hparams.retain_weight)
