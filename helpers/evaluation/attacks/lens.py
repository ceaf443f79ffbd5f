"""Read the answer off inside the model, before the layer that hides it: logit lens and probe."""

import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import (
    AttackNotApplicableError,
    attack,
    curve,
    require_own_tokens,
)
from helpers.evaluation.metrics.linear_probe import linear_probe
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations, stack_layers
from helpers.forward.prompts import first_token
from helpers.models import final_norm, unembed

CANDIDATES = 48  # other subjects whose targets the target has to beat


@attack("lens", budget="layer", pooled=True)
@torch.inference_mode()
def lens(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank of the target among other subjects' targets in the logit lens, after every layer.

    The score is the share of candidates that come after it: 1 is first, 0.5 is chance. Ranks among
    answers of the relation show what probabilities over the whole vocabulary don't: in the layers
    where the fact arrives other words are still ahead of all answers.
    """
    require_own_tokens(model)
    prompts = [p for p in pair.prompts("heldout") if p.format == "completion"]
    others = pair.others(CANDIDATES, seed=seed)
    if not prompts or not others:
        raise AttackNotApplicableError(
            "The pair has no statements, or no other answers to rank among."
        )
    activations = cache_activations(model, prompts, sites=["residual"])
    states = stack_layers(activations, "residual")  # (n, layers, d_model)
    rows = []
    for prompt, residual in zip(prompts, states, strict=True):
        logits = unembed(model, final_norm(model, residual.to(model._module.device))).float()
        target = first_token(model, prompt, prompt.answers[0])
        tokens = {first_token(model, prompt, o.answers[0]) for o in others} - {target}
        rival, own = logits[:, sorted(tokens)], logits[:, target, None]
        ahead = (rival < own).float() + 0.5 * (rival == own).float()
        known = own.isfinite() & rival.isfinite().all(1, keepdim=True)  # NaN is not below anything
        rows.append(ahead.where(known, torch.nan).mean(1).tolist())
    return curve(dict(enumerate(zip(*rows, strict=True))))


@attack("probe", budget="layer", pooled=True)
def probe(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank of the target in what a linear probe reads at the last token (`linear_probe`).

    The probe was taught other subjects' facts; 1 is first, 0.5 is chance.
    """
    require_own_tokens(model)
    try:
        table = linear_probe(model, pair, seed=seed)
    except UserError as error:
        raise AttackNotApplicableError(str(error)) from error
    return table.rename(columns={"layer": "budget"})[["budget", "prompt", "score"]]
