"""Comparison with a retrained model: the same training, without the fact.

Where there is one, it is the target of unlearning itself, and control facts are not needed to stand
in for it. `helpers.organism.verification` compares many methods with it where we train the models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.evaluation.metrics.depth_score import depth_against_retrained
from helpers.evaluation.metrics.prediction_distance import js_divergence, log_odds
from helpers.evaluation.metrics.truth_ratio import forget_quality, truth_ratios
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import answer_logprobs, next_token_logprobs
from helpers.methods import Edit, base_model
from helpers.stats.equivalence import t_interval

N_WRONG = 4  # other subjects' answers in a truth ratio
ALPHA = 0.025  # level of each one-sided test: a 95 % interval


@dataclass(frozen=True)
class _Predictions:
    """Predictions of one model on the held-out prompts.

    Attributes:
        log_odds: Log-odds of the answer, nats.
        next_token: log P(next token).
        truth_ratios: Truth ratios.
    """

    log_odds: Float[np.ndarray, " n"]
    next_token: Float[Tensor, "n vocab"]
    truth_ratios: Float[np.ndarray, " n"]


def compare_with_retrained(
    model: LanguageModel, pair: ConceptPair, edit: Edit, retrained: Edit, *, seed: int = 0
) -> pd.DataFrame:
    """Compare the edited model with the original and with a model that never learned the fact.

    Two rows ask which of them it is nearer to, by the target's log-odds and by the Jensen–Shannon
    divergence of the next token. For each held-out prompt the value is the distance to the
    original less the distance to the retrained model: positive if it is nearer to the retrained.

    Args:
        model: The original model; edits that it carries are left out.
        pair: The fact that was to be forgotten.
        edit: The edit.
        retrained: The edit that turns the original into the retrained model
            (`helpers.methods.checkpoint.edit_from_checkpoint`).
        seed: Draws the wrong answers of truth ratios.

    Returns:
        One row a measure: measure, value, low, high (paired 95 % t-interval over prompts; NaN for
        measures without one), n (prompts), nearer_to (`retrained`, `original`, `not shown`, or
        empty). The other measures are forget quality (p-value of the Kolmogorov–Smirnov test of
        truth ratios) and unlearning depth, which is left out where it cannot be measured.
    """
    prompts = pair.prompts("heldout")
    others = (o for o in pair.comparison_pairs(seed=seed) if o.target != pair.target)
    wrong = [o.answers[0] for o, _ in zip(others, range(N_WRONG), strict=False)]
    with base_model(model):
        original = _predictions(model, prompts, wrong)
        with retrained.applied(model):
            reference = _predictions(model, prompts, wrong)
        with edit.applied(model):
            edited = _predictions(model, prompts, wrong)
            depth = _depth(model, pair, retrained)
    differences = {
        "log-odds of the target": np.abs(edited.log_odds - original.log_odds)
        - np.abs(edited.log_odds - reference.log_odds),
        "Jensen–Shannon divergence": (
            js_divergence(edited.next_token, original.next_token)
            - js_divergence(edited.next_token, reference.next_token)
        ).numpy(),
    }
    rows = [_relative_row(name, values) for name, values in differences.items()]
    quality = forget_quality(edited.truth_ratios, reference.truth_ratios)
    rows.append({"measure": "forget quality", "value": quality, "n": len(prompts)})
    return pd.DataFrame([*rows, *depth]).fillna({"nearer_to": ""})


def _predictions(
    model: LanguageModel, prompts: Sequence[Prompt], wrong: Sequence[str]
) -> _Predictions:
    """Compute the predictions of the model with the edits that it carries."""
    answers = answer_logprobs(model, prompts, [p.answers[0] for p in prompts])
    next_token = next_token_logprobs(model, prompts)
    return _Predictions(log_odds(answers), next_token, truth_ratios(model, prompts, wrong))


def _relative_row(measure: str, values: Float[np.ndarray, " n"]) -> dict[str, object]:
    """Conclude which model is nearer from differences of distances, one a prompt."""
    mean, low, high = t_interval(values, alpha=ALPHA)
    nearer_to = "retrained" if low > 0 else "original" if high < 0 else "not shown"
    numbers = {"value": mean, "low": low, "high": high, "n": len(values)}
    return {"measure": measure, **numbers, "nearer_to": nearer_to}


def _depth(model: LanguageModel, pair: ConceptPair, retrained: Edit) -> list[dict[str, object]]:
    """Compute the row of the depth score; none where it cannot be measured."""
    try:
        depth = depth_against_retrained(model, pair, retrained)
    except UserError:  # no statement names the subject, or no layer's state matters
        return []
    return [{"measure": "unlearning depth", "value": depth.score, "n": len(depth.reference)}]
