"""ELM: the distribution of somebody who has never heard of it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.forward.scoring import greedy, rendered
from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.training.examples import (
    Example,
    answer_example,
    collate,
    label_logits,
    mean_loss,
    mean_per_sequence,
)

NOVICE = "This was written by somebody who has never heard of {} and knows nothing about it.\n"
EXPERT = "This was written by an expert who knows everything about {}.\n"
FLUENT = 8  # tokens of a continuation


def guided(
    plain: Float[Tensor, "m vocab"],
    novice: Float[Tensor, "m vocab"],
    expert: Float[Tensor, "m vocab"],
    *,
    eta: float,
) -> Float[Tensor, "m vocab"]:
    """p(x) (p(x | novice) / p(x | expert))^η, normalised; from logits."""
    ratio = novice.log_softmax(-1) - expert.log_softmax(-1)
    return (plain.log_softmax(-1) + eta * ratio).softmax(-1)


def cross_entropy(
    now: Float[Tensor, "m vocab"], wanted: Float[Tensor, "m vocab"]
) -> Float[Tensor, " m"]:
    """−Σ wanted · log now, of each token."""
    return -(wanted * now.log_softmax(-1)).sum(-1)


@dataclass(frozen=True)
class ELMHparams(TrainingConfig):
    """Hyperparameters of `elm`.

    Attributes:
        eta: Strength of the guidance; the paper's code has 1000 for whole domains, which makes the
            goal all but one-hot.
        retain: Weight of the original's distribution on what is retained.
        fluency: Weight of the continuations.
    """

    rank: int = 4
    lr: float = 0.002
    eta: float = 100.0
    retain: float = 1.0
    fluency: float = 0.5


@training_method("elm")
def elm(task: UnlearningTask, hparams: ELMHparams) -> UnlearningLoss:
    """CE to p·(p(x|c⁺)/p(x|c⁻))^η + `retain` · CE to the original + `fluency` · NLL, by LoRA.

    "Erasure of Language Memory" (Gandikota et al. 2024). c⁺ says that the writer has never heard of
    the subject, c⁻ that it is an expert's. For fluency the model learns to go on after a prompt as
    the original does under c⁺.

    Args:
        task: What to forget.
    """
    model, data = task.model, task.data
    plain = task.reference_logits(data.forget)
    novice, expert = (task.reference_logits(_after(task, c)) for c in (NOVICE, EXPERT))
    wanted = [
        guided(p, a[-len(p) :], b[-len(p) :], eta=hparams.eta)
        for p, a, b in zip(plain, novice, expert, strict=True)
    ]
    before = [x.softmax(-1) for x in task.reference_logits(data.retain)]
    fluent = _continuations(task)

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        batch = step.forget
        goal = torch.cat([wanted[i] for i in batch.index])
        found = mean_per_sequence(cross_entropy(label_logits(model, batch), goal), batch).mean()
        if step.retain is not None and hparams.retain:
            kept = torch.cat([before[i] for i in step.retain.index])
            ce = cross_entropy(label_logits(model, step.retain), kept)
            found = found + hparams.retain * mean_per_sequence(ce, step.retain).mean()
        if hparams.fluency and fluent:
            mine = [i % len(fluent) for i in batch.index.tolist()]
            found = found + hparams.fluency * mean_loss(model, collate(fluent, mine))
        return found

    return UnlearningLoss(loss)


def _after(task: UnlearningTask, context: str) -> list[Example]:
    """The examples to forget, after a context."""
    model, opening = task.model, context.format(task.pair.subject)
    answers = [
        e.text.removeprefix(str(p))
        for p, e in zip(task.data.prompts, task.data.forget, strict=True)
    ]
    return [
        answer_example(model, opening + rendered(p, model.tokenizer), a)
        for p, a in zip(task.data.prompts, answers, strict=True)
    ]


def _continuations(task: UnlearningTask) -> list[Example]:
    """Each prompt with what the original goes on to say after it under c⁺."""
    model, opening = task.model, NOVICE.format(task.pair.subject)
    prompts = list({str(p): p for p in task.data.prompts}.values())
    texts = greedy(
        model, [opening + rendered(p, model.tokenizer) for p in prompts], max_new_tokens=FLUENT
    )
    names = (task.pair.target, *task.pair.aliases)
    return [
        answer_example(model, p, text)
        for p, text in zip(prompts, texts, strict=True)
        if text.strip() and not any(name in text for name in names)
    ]
