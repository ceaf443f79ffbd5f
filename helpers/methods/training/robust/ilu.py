"""ILU: forget in a way that fine-tuning on unrelated text has no reason to change."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.methods.training.data import unrelated_passages
from helpers.methods.training.task import ForgetRetainBatch, UnlearningLoss, UnlearningTask
from helpers.training.examples import collate, label_logits

N_TEXTS = 48  # passages that stand for fine-tuning


def invariance_penalty(
    logits: Float[Tensor, "m vocab"], labels: Int[Tensor, " m"]
) -> Float[Tensor, ""]:
    """Compute (d/dw of the mean cross-entropy of w · logits, at w = 1)², in nats².

    It is IRMv1's penalty (Arjovsky et al. 2019): zero where no scaling of the outputs lowers the
    loss. The derivative of a token is E_p[logit] − logit of the label.

    Args:
        logits: Logits at the labels.
        labels: The tokens.
    """
    expected = (logits.softmax(-1) * logits).sum(-1)
    return (expected - logits.gather(-1, labels[:, None])[:, 0]).mean().square()


def ilu(task: UnlearningTask, loss: UnlearningLoss) -> UnlearningLoss:
    """Return the loss + λ ‖∇_w ℓ(w∘θ)|_{w=1}‖², ℓ the NLL of unrelated text.

    Invariant LLM unlearning (Wang et al. 2025, "Invariance Makes LLM Unlearning Resilient Even to
    Unanticipated Downstream Fine-Tuning"). One unrelated set stands for whatever the model may be
    fine-tuned on; here it is text of the Factbook. w is a scalar that multiplies the logits.

    Args:
        task: Gives λ, the model, and the pairs that the text must not name.
        loss: The method's loss.
    """
    config = task.config
    texts = unrelated_passages(
        task.model, task.pairs, n=N_TEXTS, n_tokens=config.passage_tokens, seed=task.seed + 2
    )

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        # The training seeds each forward pass, so a resumed one draws the same texts.
        drawn = collate(texts, torch.randint(len(texts), (config.batch_size,)).tolist())
        logits = label_logits(task.model, drawn)
        penalty = invariance_penalty(logits, drawn.label_ids.to(logits.device))
        return loss.forget_loss(batch) + config.ilu_weight * penalty

    return replace(loss, forget_loss=forget_loss)
