"""ELM: distil the model's distribution for a writer who has never heard of the subject."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.forward.generation import greedy
from helpers.forward.prompts import input_text
from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
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


def guided(
    plain: Float[Tensor, "m vocab"],
    novice: Float[Tensor, "m vocab"],
    expert: Float[Tensor, "m vocab"],
    *,
    eta: float,
) -> Float[Tensor, "m vocab"]:
    """Compute p(x) (p(x | novice) / p(x | expert))^η, normalised, from logits.

    Args:
        plain: Logits without a context.
        novice: Logits after the novice's context.
        expert: Logits after the expert's context.
        eta: Strength of the guidance, η.
    """
    ratio = novice.log_softmax(-1) - expert.log_softmax(-1)
    return (plain.log_softmax(-1) + eta * ratio).softmax(-1)


def cross_entropy(
    logits: Float[Tensor, "m vocab"], target: Float[Tensor, "m vocab"]
) -> Float[Tensor, " m"]:
    """Compute the cross-entropy of each token to a target distribution, in nats."""
    return -(target * logits.log_softmax(-1)).sum(-1)


@dataclass(frozen=True)
class ELMHparams(TrainingConfig):
    """Hyperparameters of `elm`.

    Attributes:
        eta: Strength of the guidance; the paper's code has 1000 for whole domains, which makes the
            goal all but one-hot.
        retain_weight: Weight of the original's distribution on the examples to retain.
        fluency_weight: Weight of the continuations.
        n_continuation_tokens: Tokens of a continuation.
    """

    RENAMED: ClassVar = TrainingConfig.RENAMED | {"fluency": "fluency_weight"}

    lora_rank: int = 4
    lr: float = 0.002
    eta: float = 100.0
    retain_weight: float = 1.0
    fluency_weight: float = 0.5
    n_continuation_tokens: int = 8


@training_method("elm")
def elm(task: UnlearningTask, hparams: ELMHparams) -> UnlearningLoss:
    """Minimise CE to p·(p(x|c⁺)/p(x|c⁻))^η + CE to the original + NLL of continuations.

    "Erasure of Language Memory" (Gandikota et al. 2024). c⁺ says that the writer has never heard of
    the subject, c⁻ that it is an expert's text. The second term, on the examples to retain, has the
    weight `retain_weight`. The third has `fluency_weight`: the model is trained on the original's
    own continuations of a prompt after c⁺.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.
    """
    model, data = task.model, task.data
    plain = task.reference_logits(data.forget)
    novice, expert = (task.reference_logits(_after_context(task, c)) for c in (NOVICE, EXPERT))
    targets = [
        guided(p, a[-len(p) :], b[-len(p) :], eta=hparams.eta)
        for p, a, b in zip(plain, novice, expert, strict=True)
    ]
    references = [x.softmax(-1) for x in task.reference_logits(data.retain)]
    continuations = _continuations(task, hparams.n_continuation_tokens)

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        target = torch.cat([targets[i] for i in batch.forget.index])
        ce = cross_entropy(label_logits(model, batch.forget), target)
        return mean_per_sequence(ce, batch.forget).mean()

    def retain_loss(batch: ForgetRetainBatch) -> Tensor | float:
        total: Tensor | float = 0.0
        if batch.retain is not None and hparams.retain_weight:
            reference = torch.cat([references[i] for i in batch.retain.index])
            ce = cross_entropy(label_logits(model, batch.retain), reference)
            total = hparams.retain_weight * mean_per_sequence(ce, batch.retain).mean()
        if hparams.fluency_weight and continuations:
            index = [i % len(continuations) for i in batch.forget.index.tolist()]
            fluency_loss = mean_loss(model, collate(continuations, index))
            total = total + hparams.fluency_weight * fluency_loss
        return total

    return UnlearningLoss(forget_loss, retain_loss)


def _after_context(task: UnlearningTask, context: str) -> list[Example]:
    """Return the examples to forget, after a context that names the subject."""
    model, prefix = task.model, context.format(task.pair.subject)
    answers = [
        e.text.removeprefix(str(p))
        for p, e in zip(task.data.prompts, task.data.forget, strict=True)
    ]
    return [
        answer_example(model, prefix + input_text(p, model.tokenizer), a)
        for p, a in zip(task.data.prompts, answers, strict=True)
    ]


def _continuations(task: UnlearningTask, n_tokens: int) -> list[Example]:
    """Return each prompt with the original's greedy continuation of it after c⁺.

    Continuations that name the target are left out.
    """
    model, prefix = task.model, NOVICE.format(task.pair.subject)
    prompts = list({str(p): p for p in task.data.prompts}.values())
    texts = greedy(
        model, [prefix + input_text(p, model.tokenizer) for p in prompts], max_new_tokens=n_tokens
    )
    names = (task.pair.target, *task.pair.aliases)
    return [
        answer_example(model, p, text)
        for p, text in zip(prompts, texts, strict=True)
        if text.strip() and not any(name in text for name in names)
    ]
