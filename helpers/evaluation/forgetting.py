"""Two-sided forgetting: how far the target's log-odds end from those of control answers.

A model that never knew a fact gives its target about the log-odds of other answers that the
subject is associated with, such as Lyon for France. These are the *associated controls*. An edit
that leaves the target far below them has made a scar, which betrays the fact as one far above does.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel
from scipy.special import logit

from helpers.evaluation.attacks.registry import ControlsError, associated_facts, control_facts
from helpers.evaluation.battery import N_ASSOCIATED
from helpers.evaluation.recovery import MIN_PROB
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import answer_probability
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.models import model_hash

ASSOCIATED, UNRELATED, NO_REFERENCE = "associated", "unrelated", "none"
N_UNRELATED = 4  # unrelated controls, where there are no associated ones
MIN_CONTROLS = 2  # fewer have no standard deviation


def distance_from_controls(
    log_odds: Float[np.ndarray, " n"],
    mean: Float[np.ndarray, " n"],
    sd: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Compute max(0, |log-odds − mean| − sd), in nats: 0 within one standard deviation."""
    return np.maximum(0, np.abs(log_odds - mean) - sd)


def two_sided_forgetting(
    after: Float[np.ndarray, " n"],
    before: Float[np.ndarray, " n"],
    mean: Float[np.ndarray, " n"],
    sd: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Compute 1 − d(after) / d(before), clipped to [0, 1]; d is `distance_from_controls`.

    It is 1 for a target at the controls' level, and 0 for one as far above or below as before.

    Args:
        after: Mean log-odds of the target after the edit, in nats.
        before: The same before the edit. It has to lie outside the controls' standard deviation.
        mean: Mean log-odds of the controls.
        sd: Standard deviation of their log-odds.
    """
    remaining = distance_from_controls(after, mean, sd) / distance_from_controls(before, mean, sd)
    return np.clip(1 - remaining, 0, 1)


def mean_log_odds(model: LanguageModel, prompts: Sequence[Prompt]) -> float:
    """Compute the mean log-odds of P(answer) over prompts, in nats."""
    return float(_log_odds(answer_probability(model, prompts)).mean())


def reference_columns(
    model: LanguageModel, pair: ConceptPair, *, split: str, seed: int
) -> dict[str, float | str]:
    """Measure the level of the controls that two-sided forgetting compares a target with.

    The reference is the associated controls. Where there are too few of them it is unrelated
    controls: other subjects with the target. There is none where the original gives the target no
    more than the level of its controls: nothing is to be forgotten by their measure.

    Args:
        model: The original model.
        pair: The fact that is forgotten.
        split: The split whose prompts are scored, as `paraphrases` of the scorecard.
        seed: Draws the controls.

    Returns:
        `reference` (`ASSOCIATED`, `UNRELATED` or `NO_REFERENCE`), and in nats `log_odds_before` (of
        the target, mean over prompts), `control_log_odds` (mean over controls) and `control_sd`.
        The last two are NaN without a reference.
    """
    reference, controls = _controls(model, pair, seed)
    before, *levels = _levels(model, [pair, *controls], split)
    mean, sd = (np.mean(levels), np.std(levels, ddof=1)) if controls else (np.nan, np.nan)
    # Within the controls' spread d(before) is 0, and forgetting has no scale.
    if not before > mean + sd:
        reference, mean, sd = NO_REFERENCE, np.nan, np.nan
    return {
        "reference": reference,
        "log_odds_before": before,
        "control_log_odds": float(mean),
        "control_sd": float(sd),
    }


def _controls(model: LanguageModel, pair: ConceptPair, seed: int) -> tuple[str, list[ConceptPair]]:
    """Choose the kind of controls, and draw them; an empty list where there are none."""
    associated = associated_facts(model, pair, n=N_ASSOCIATED, seed=seed)
    if len(associated) >= MIN_CONTROLS:
        return ASSOCIATED, associated
    try:
        return UNRELATED, control_facts(model, pair, n=N_UNRELATED, seed=seed)
    except ControlsError:
        return NO_REFERENCE, []


def _levels(model: LanguageModel, pairs: Sequence[ConceptPair], split: str) -> list[float]:
    """Compute each pair's mean log-odds over the prompts of a split; cached."""
    prompts = [pair.prompts(split) for pair in pairs]
    queries = [prompt for group in prompts for prompt in group]
    key = {
        "model": model_hash(model),
        "prompts": [[str(p), p.answers] for p in queries],
        "code": code_hash(__file__),
    }
    table = cached_table(
        "control-levels", key, lambda: pd.DataFrame({"p": answer_probability(model, queries)})
    )
    ends = np.cumsum([len(group) for group in prompts])[:-1]
    return [float(part.mean()) for part in np.split(_log_odds(table["p"].to_numpy()), ends)]


def _log_odds(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return logit(np.clip(p, MIN_PROB, 1 - MIN_PROB))
