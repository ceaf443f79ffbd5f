"""Read the answer inside the model, before the layer that hides it, by the logit lens."""

import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import (
    AttackNotApplicableError,
    attack,
    require_own_tokens,
    score_table,
)
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations, stack_layers
from helpers.forward.prompts import first_token
from helpers.models import final_norm, torch_module, unembed

N_CANDIDATES = 48  # other subjects, whose targets are ranked with the target


@attack("logit_lens", budget="layer", aggregate_budgets=True)
@torch.inference_mode()
def logit_lens(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank the target among other subjects' targets in the logit lens, after every layer.

    The score is the fraction of candidates that rank below it: 1 is first, 0.5 is chance. Ranks
    among the relation's answers show more than probabilities over the vocabulary. In the layers
    where the fact arrives, other words still rank above all answers.
    """
    require_own_tokens(model)
    prompts = [p for p in pair.prompts("heldout") if p.format == "completion"]
    others = pair.comparison_pairs(N_CANDIDATES, seed=seed)
    if not prompts or not others:
        raise AttackNotApplicableError(
            "The pair has no statements, or no other answers to rank among."
        )
    activations = cache_activations(model, prompts, sites=["residual"])
    states = stack_layers(activations, "residual")  # (n, layers, d_model)
    rows = []
    for prompt, residual in zip(prompts, states, strict=True):
        logits = unembed(model, final_norm(model, residual.to(torch_module(model).device))).float()
        target = first_token(model, prompt, prompt.answers[0])
        tokens = {first_token(model, prompt, o.answers[0]) for o in others} - {target}
        other_logits, target_logits = logits[:, sorted(tokens)], logits[:, target, None]
        below = other_logits < target_logits
        ahead = below.float() + 0.5 * (other_logits == target_logits).float()
        # A comparison with NaN is false, which would read as the last rank.
        finite = target_logits.isfinite() & other_logits.isfinite().all(1, keepdim=True)
        rows.append(ahead.where(finite, torch.nan).mean(1).tolist())
    return score_table(dict(enumerate(zip(*rows, strict=True))))
