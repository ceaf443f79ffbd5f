"""How deep inside the model does the unlearning reach?

The unlearning depth score patches states of other models into the original: where a state of the
unlearned model does as much harm to the answer as one of a model that never knew it, the fact is
gone at that layer; where it does none, the fact is still there and only hidden further up.
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
from helpers.methods import base_model
from helpers.models import architecture_of
from helpers.tracing import Patch, run_patched
from helpers.tracing.patching import logits_of

MOST = 4  # statements that are patched
THRESHOLD = 0.05  # nats: layers where the reference does less harm say nothing


def unlearning_depth_score(
    reference: Float[np.ndarray, " layers"],
    unlearned: Float[np.ndarray, " layers"],
    *,
    threshold: float = THRESHOLD,
) -> float:
    """Σ δ₁ · clip(δ₂ / δ₁, 0, 1) / Σ δ₁ over layers with δ₁ > threshold.

    From 0 (no layer differs from the original: only hidden) to 1 (as deep as the reference).
    Defined in "Unlearning Depth Score" (arXiv 2605.24614).

    Args:
        reference: δ₁, by layer: drop of log P(first token of the answer) in the original with a
            state of a model that never knew it.
        unlearned: δ₂: the same with a state of the unlearned model.
        threshold: Least δ₁ of a layer that counts.

    Raises:
        UserError: No layer counts.
    """
    reference, unlearned = np.asarray(reference, float), np.asarray(unlearned, float)
    here = reference > threshold
    if not here.any():
        raise UserError(
            f"No layer's state changes the answer by more than {threshold} nats: the depth of an "
            "unlearning can't be measured with this prompt and reference."
        )
    d1, d2 = reference[here], unlearned[here]
    return float((d1 * np.clip(d2 / d1, 0, 1)).sum() / d1.sum())


@dataclass(frozen=True)
class Depth:
    """The score and what it is made of.

    Attributes:
        score: Over the layers of all prompts.
        reference: δ₁, prompts by layers, nats.
        unlearned: δ₂.
    """

    score: float
    reference: Float[np.ndarray, "n layers"]
    unlearned: Float[np.ndarray, "n layers"]


def unlearning_depth(
    model: LanguageModel,
    pair: ConceptPair,
    strangers: Sequence[ConceptPair],
    *,
    most: int = MOST,
    absent: bool = False,
) -> Depth:
    """The depth score of the model as it is, on the pair's first held-out statements.

    Patched is the residual stream at the subject's tokens. In place of a model that never knew the
    fact, δ₁ takes the original's states of *subjects* that it knows nothing of: they lack the whole
    subject, not the fact alone, so the score reads lower than with a retrained reference, most of
    all in the first layers.

    Args:
        model: The model with its edits.
        pair: What was forgotten.
        strangers: Never-known pairs (`control_facts`), with the same templates.
        most: So many statements are patched.
        absent: In place of the model's states those of a second stranger: what the score says
            where the fact was never there.

    Raises:
        UserError: No stranger's name (with `absent`, no two strangers') has as many tokens as the
            subject's, or a request stands before every text.
    """
    require_own_tokens(model)
    arch = architecture_of(model)
    d1, d2 = [], []
    for index, prompt in enumerate(pair.prompts("heldout")):
        if prompt.format != "completion":
            continue
        span = range(*subject_span(prompt, model.tokenizer))
        ids = token_ids(model, prompt)
        alike = [s.prompts("heldout")[index] for s in strangers]
        alike = [s for s in alike if _shape(model, s) == (len(ids), span.start, span.stop)]
        if len(alike) < 1 + absent or len(d1) == most:
            continue
        now = _residual(model, token_ids(model, alike.pop(1)) if absent else ids)
        with base_model(model):
            sources = [_residual(model, token_ids(model, s)) for s in alike[:1]]
            jobs = [
                [Patch("residual", i, span, states[i, span.start : span.stop])]
                for states in (now, *sources)
                for i in range(arch.n_layers)
            ]
            answer = first_token(model, prompt, prompt.answers[0])
            final = run_patched(model, ids, [[], *jobs])
            logp = logits_of(model, final).log_softmax(-1)[:, answer].double().cpu().numpy()
        drop = (logp[0] - logp[1:]).reshape(2, arch.n_layers)
        d2.append(drop[0])
        d1.append(drop[1])
    if not d1:
        raise UserError(
            f"No never-known subject has a name of as many tokens as {pair.subject}: give more."
        )
    reference, unlearned = np.array(d1), np.array(d2)
    score = unlearning_depth_score(reference.ravel(), unlearned.ravel())
    return Depth(score, reference, unlearned)


def _residual(model: LanguageModel, ids: list[int]) -> Float[torch.Tensor, "layers t d_model"]:
    activations = cache_activations(model, [ids], sites=["residual"], positions="all")
    return torch.stack(list(activations.values()))


def _shape(model: LanguageModel, prompt: Prompt) -> tuple[int, int, int]:
    return (len(token_ids(model, prompt)), *subject_span(prompt, model.tokenizer))
