"""Read the answer inside the model, before the layer that hides it, by the logit lens.

Some words rank high in every text, whatever it is about. So each candidate's logit is taken less
its mean over the same prompts about other subjects: what is left is what this subject adds.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.attacks.registry import (
    AttackKind,
    AttackNotApplicableError,
    attack,
    require_own_tokens,
    score_table,
)
from helpers.facts import ConceptPair, Prompt
from helpers.facts.associated import associated_targets
from helpers.forward.activations import Position, cache_activations, stack_layers
from helpers.forward.prompts import first_token
from helpers.io.hashing import content_hash
from helpers.models import architecture_of, final_norm, model_hash

N_CANDIDATES = 48  # other subjects, whose targets are ranked with the target
N_ASSOCIATED = 8  # non-answers of the subject among the candidates
N_BASELINE = 24  # other subjects that give each candidate's mean logit


@attack(
    "logit_lens", budget="layer", aggregate_budgets=True, by_rank=True, kind=AttackKind.ACTIVATIONS
)
@torch.inference_mode()
def logit_lens(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank the target among candidates in the logit lens, at the last token of each layer.

    Candidates are other subjects' targets, and non-answers that the subject is associated with. The
    score is 1 − log(rank) / log(number of candidates): 1 is first, 0 last. Ranks show more than
    probabilities over the vocabulary: in the layers where the fact arrives, other words still
    stand above all answers.
    """
    return _lens_ranks(model, pair, "last", seed)


@attack(
    "logit_lens_subject",
    budget="layer",
    aggregate_budgets=True,
    by_rank=True,
    kind=AttackKind.ACTIVATIONS,
    shows_suppression=True,
)
@torch.inference_mode()
def logit_lens_subject(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank the target as `logit_lens` does, at the subject's last token.

    There the middle layers gather what is known of the subject (Geva et al. 2023, "Dissecting
    Recall of Factual Associations"); an edit that stops its hand-over leaves it in place.
    """
    return _lens_ranks(model, pair, "subject", seed)


def _lens_ranks(
    model: LanguageModel, pair: ConceptPair, position: Position, seed: int
) -> pd.DataFrame:
    require_own_tokens(model)
    prompts = pair.statements("heldout")
    others = pair.comparison_pairs(N_CANDIDATES, seed=seed)
    if not prompts or not others:
        raise AttackNotApplicableError(
            "The pair has no statements, or no other answers to rank among."
        )
    names = [*(o.answers[0] for o in others)]
    names += [f" {name}" for name in associated_targets(pair)[:N_ASSOCIATED]]
    states = _lens_states(model, prompts, position)  # (n, layers, d_model)
    baseline = _baseline_states(model, pair, position, seed)  # (others, n, layers, d_model)
    rows = []
    for i, prompt in enumerate(prompts):
        target = first_token(model, prompt, prompt.answers[0])
        tokens = {first_token(model, prompt, name) for name in names} - {target}
        ids = torch.tensor([target, *sorted(tokens)])
        logits = _logits(model, states[i], ids) - _logits(model, baseline[:, i], ids).mean(0)
        rows.append(log_rank(logits).tolist())
    return score_table(dict(enumerate(zip(*rows, strict=True))))


def log_rank(logits: Float[Tensor, "layers n"]) -> Float[Tensor, " layers"]:
    """Compute 1 − log(rank) / log(n) of the first column among all; ties share the mean rank.

    The logarithm tells first from second as well as tenth from twentieth. NaN where a logit is not
    finite: a comparison with NaN is false, and would read as the last rank.
    """
    target, others = logits[:, :1], logits[:, 1:]
    rank = 1 + (others > target).sum(1) + 0.5 * (others == target).sum(1)
    score = (1 - rank.log() / np.log(logits.shape[1])).clamp(0, 1)  # the last rank rounds below 0
    return score.where(logits.isfinite().all(1), torch.nan)


def _lens_states(
    model: LanguageModel, prompts: Sequence[Prompt], position: Position
) -> Float[Tensor, "n layers d_model"]:
    """Return the residual stream after every layer, with the final norm applied."""
    activations = cache_activations(model, prompts, sites=["residual"], positions=position)
    states = stack_layers(activations, "residual")
    head = architecture_of(model).head.weight
    return final_norm(model, states.to(head)).float().cpu()


_LAST_BASELINE: dict[tuple, dict[str, Float[Tensor, "layers d_model"]]] = {}


def _baseline_states(
    model: LanguageModel, pair: ConceptPair, position: Position, seed: int
) -> Float[Tensor, "others n layers d_model"]:
    """Return the states of the same prompts about other subjects.

    Subjects are drawn by a hash, so that pairs share them; the last model's states are kept.
    """
    others = sorted(pair.comparison_pairs(), key=lambda o: content_hash([seed, o.subject]))
    prompts = [p for o in others[:N_BASELINE] for p in o.statements("heldout")]
    key = (model_hash(model), position)
    if key not in _LAST_BASELINE:
        _LAST_BASELINE.clear()
        _LAST_BASELINE[key] = {}
    known = _LAST_BASELINE[key]
    if missing := [p for p in prompts if str(p) not in known]:
        states = _lens_states(model, missing, position)
        known.update(zip(map(str, missing), states, strict=True))
    return torch.stack([known[str(p)] for p in prompts]).unflatten(
        0, (len(others[:N_BASELINE]), -1)
    )


def _logits(
    model: LanguageModel, states: Float[Tensor, "*n d_model"], ids: Int[Tensor, " c"]
) -> Float[Tensor, "*n c"]:
    """Compute the logits of a few tokens; a family's soft cap would not change their order."""
    head = architecture_of(model).head.weight.detach()
    return states @ head[ids.to(head.device)].float().cpu().T
