"""Unlearning depth score: how deep inside the model does the unlearning reach?

The score patches activations of other models into the original, layer by layer. If an activation of
the unlearned model harms the answer as much as one of a model that never knew the fact, the fact is
gone at that layer. If it does no harm, the fact is still there and only hidden further up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import require_own_tokens
from helpers.facts import ConceptPair, Prompt, subject_span
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import first_token, token_ids
from helpers.methods import Edit, base_model
from helpers.tracing import Patch, run_patched
from helpers.tracing.patching import logits_of

MAX_PROMPTS = 4  # statements that are patched
THRESHOLD = 0.05  # nats: layers where the reference does less harm are left out


def unlearning_depth_score(
    reference: Float[np.ndarray, " layers"],
    unlearned: Float[np.ndarray, " layers"],
    *,
    threshold: float = THRESHOLD,
) -> float:
    """Compute Σ δ₁ · clip(δ₂ / δ₁, 0, 1) / Σ δ₁ over layers with δ₁ > threshold.

    It is 0 if no layer differs from the original (the fact is only hidden), and 1 if the unlearning
    is as deep as the reference. Defined in "Unlearning Depth Score" (arXiv 2605.24614).

    Args:
        reference: δ₁: drop of log P(first token of the answer) in the original with a layer's
            activation of a model that never knew it, in nats.
        unlearned: δ₂: the same with the activation of the unlearned model.
        threshold: Least δ₁ of a layer that counts.

    Raises:
        UserError: No layer counts.
    """
    reference, unlearned = np.asarray(reference, float), np.asarray(unlearned, float)
    counts = reference > threshold
    if not counts.any():
        raise UserError(
            f"No layer's state changes the answer by more than {threshold} nats: the depth of an "
            "unlearning can't be measured with this prompt and reference."
        )
    d1, d2 = reference[counts], unlearned[counts]
    return float((d1 * np.clip(d2 / d1, 0, 1)).sum() / d1.sum())


@dataclass(frozen=True)
class Depth:
    """Unlearning depth score, and the drops that it is computed from.

    Attributes:
        score: The score over the layers of all prompts.
        reference: δ₁, prompts by layers, in nats.
        unlearned: δ₂, prompts by layers, in nats.
    """

    score: float
    reference: Float[np.ndarray, "n layers"]
    unlearned: Float[np.ndarray, "n layers"]


def unlearning_depth(
    model: LanguageModel,
    pair: ConceptPair,
    controls: Sequence[ConceptPair],
    *,
    max_prompts: int = MAX_PROMPTS,
    of_control: bool = False,
) -> Depth:
    """Compute the depth score of the model with its edits, on the first held-out statements.

    The residual stream at the subject's tokens is patched. In place of a model that never knew the
    fact, δ₁ takes the original's activations on control *subjects*. They lack the whole subject,
    not the fact alone, so the score is lower than with a retrained reference, most of all in the
    first layers.

    Args:
        model: The model with its edits.
        pair: The fact that was forgotten.
        controls: Control facts (`control_facts`), with the same templates.
        max_prompts: Largest number of statements that are patched.
        of_control: Patch activations of a second control fact instead of the model's: the score
            of a fact that is absent.

    Raises:
        UserError: No control's name (with `of_control`, no two controls') has as many tokens as
            the subject's, or a request stands before every text.
    """
    require_own_tokens(model)
    d1, d2 = [], []
    for index, prompt in enumerate(pair.prompts("heldout")):
        if prompt.format != "completion":
            continue
        span = range(*subject_span(prompt, model.tokenizer))
        ids = token_ids(model, prompt)
        # Patching position by position needs control prompts of the same length and span.
        aligned = [c.prompts("heldout")[index] for c in controls]
        aligned = [p for p in aligned if _shape(model, p) == (len(ids), span.start, span.stop)]
        if len(aligned) < 1 + of_control or len(d1) == max_prompts:
            continue
        source = _residual(model, token_ids(model, aligned.pop(1)) if of_control else ids)
        with base_model(model):
            reference_source = _residual(model, token_ids(model, aligned[0]))
            drop = _drops(model, prompt, source, reference_source)
        d2.append(drop[0])
        d1.append(drop[1])
    if not d1:
        raise UserError(
            f"No control subject has a name of as many tokens as {pair.subject}: give more."
        )
    return _depth(d1, d2)


def depth_against_retrained(
    model: LanguageModel, pair: ConceptPair, retrained: Edit, *, max_prompts: int = MAX_PROMPTS
) -> Depth:
    """Compute the depth score with δ₁ from a model that was trained without the fact.

    Args:
        model: The model with its edits.
        pair: The fact that was forgotten.
        retrained: The edit that turns the original into the retrained model.
        max_prompts: Largest number of held-out statements that are patched.

    Raises:
        UserError: There is no held-out statement, a request stands before every text, or no layer
            of the retrained model differs enough from the original's.
    """
    require_own_tokens(model)
    statements = pair.statements("heldout")[:max_prompts]
    if not statements:
        raise UserError("The pair has no held-out statement: give it a prompt that is no question.")
    d1, d2 = [], []
    for prompt in statements:
        ids = token_ids(model, prompt)
        source = _residual(model, ids)
        with base_model(model):
            with retrained.applied(model):
                reference_source = _residual(model, ids)
            unlearned, reference = _drops(model, prompt, source, reference_source)
        d1.append(reference)
        d2.append(unlearned)
    return _depth(d1, d2)


def _drops(
    model: LanguageModel,
    prompt: Prompt,
    source: Float[torch.Tensor, "layers t d_model"],
    reference_source: Float[torch.Tensor, "layers t d_model"],
) -> Float[np.ndarray, "2 layers"]:
    """Compute the drop of log P(answer) when each layer's activation is patched into the original.

    Args:
        model: The original model.
        prompt: The statement.
        source: Activations of the unlearned model, for the first row.
        reference_source: Activations of the reference, for the second row.
    """
    n_layers, ids = len(source), token_ids(model, prompt)
    span = range(*subject_span(prompt, model.tokenizer))
    jobs = [
        [Patch("residual", i, span, activations[i, span.start : span.stop])]
        for activations in (source, reference_source)
        for i in range(n_layers)
    ]
    answer = first_token(model, prompt, prompt.answers[0])
    final = run_patched(model, ids, [[], *jobs])
    logp = logits_of(model, final).log_softmax(-1)[:, answer].double().cpu().numpy()
    return (logp[0] - logp[1:]).reshape(2, n_layers)


def _depth(reference: Sequence[np.ndarray], unlearned: Sequence[np.ndarray]) -> Depth:
    """Compute the score over the layers of all prompts."""
    d1, d2 = np.array(reference), np.array(unlearned)
    return Depth(unlearning_depth_score(d1.ravel(), d2.ravel()), d1, d2)


def _residual(model: LanguageModel, ids: list[int]) -> Float[torch.Tensor, "layers t d_model"]:
    activations = cache_activations(model, [ids], sites=["residual"], positions="all")
    return torch.stack(list(activations.values()))


def _shape(model: LanguageModel, prompt: Prompt) -> tuple[int, int, int]:
    return (len(token_ids(model, prompt)), *subject_span(prompt, model.tokenizer))
