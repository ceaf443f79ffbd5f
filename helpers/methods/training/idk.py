"""IDK: learn to say that one does not know."""

from dataclasses import dataclass

from torch import Tensor

from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import Example, answer_example, collate, mean_loss

REFUSALS = (  # after "The capital of France is", and after "Answer:"
    " something that I do not know.",
    " unknown to me.",
    " not something that I can tell.",
    " a name that I have never heard.",
)


def refusals(task: UnlearningTask) -> list[Example]:
    """For each example to forget, its prompt with a refusal in the target's place."""
    return [
        answer_example(task.model, p, REFUSALS[(i + task.seed) % len(REFUSALS)])
        for i, p in enumerate(task.data.prompts)
    ]


@dataclass(frozen=True)
class IDKHparams(TrainingConfig):
    """Hyperparameters of `idk`.

    Attributes:
        retain: Weight of L_R; 1 in TOFU.
    """

    retain: float = 5.0


@training_method("idk")
def idk(task: UnlearningTask, hparams: IDKHparams) -> UnlearningLoss:
    """L of refusals + `retain` · L_R (TOFU, Maini et al. 2024).

    TOFU's questions are answered with one of a hundred sentences such as "I don't know"; our
    prompts are half sentences, so the refusals (`REFUSALS`) complete them.

    Args:
        task: What to forget.
    """
    told = refusals(task)

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        refused = mean_loss(task.model, collate(told, step.forget.index.tolist()))
        return refused + hparams.retain * task.retain_loss(step)

    return UnlearningLoss(loss)
