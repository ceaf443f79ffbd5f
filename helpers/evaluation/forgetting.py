"""Two-sided forgetting: how far the target's odds end from those of control answers.

A model that never knew a fact gives its target about the probability of other answers that the
subject is associated with, such as Lyon for France. These are the *associated controls*. An edit
that leaves the target far below them has made a scar, which betrays the fact as one far above does.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import (
    ControlsError,
    associated_facts,
    cached_probability,
    control_facts,
)
from helpers.evaluation.battery import N_ASSOCIATED
from helpers.evaluation.recovery import log_odds
from helpers.facts import ConceptPair

ASSOCIATED, UNRELATED, NO_REFERENCE = "associated", "unrelated", "none"
N_UNRELATED = 4  # unrelated controls, where there are no associated ones
MIN_CONTROLS = 2  # associated ones; a single one may be an odd name
LEVEL_MARGIN = float(np.log(10))  # nats: odds within a factor of ten, as on the organism


def distance_from_controls(
    p: Float[np.ndarray, " n"], control: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Compute max(0, |log-odds of p − log-odds of the control| − `LEVEL_MARGIN`), in nats."""
    return np.maximum(0, np.abs(log_odds(p) - log_odds(control)) - LEVEL_MARGIN)


def two_sided_forgetting(
    after: Float[np.ndarray, " n"],
    before: Float[np.ndarray, " n"],
    control: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Compute 1 − d(after) / d(before), clipped to [0, 1]; d is `distance_from_controls`.

    It is 1 for a target at the controls' level, and 0 for one as far above or below as before.

    Args:
        after: Mean P(target) over prompts after the edit.
        before: The same before the edit, outside the margin around the controls.
        control: Mean P(answer) of the controls.
    """
    remaining = distance_from_controls(after, control) / distance_from_controls(before, control)
    return np.clip(1 - remaining, 0, 1)


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
        `reference` (`ASSOCIATED`, `UNRELATED` or `NO_REFERENCE`), and `control_probability`: mean
        over controls and prompts of P(answer); NaN without a reference.
    """
    reference, controls = _controls(model, pair, seed)
    before, *levels = _levels(model, [pair, *controls], split)
    # The mean of probabilities, not of log-odds: long names, which are hardly ever said, would
    # drag that far below what the subject's likely associations get.
    level = float(np.mean(levels)) if controls else np.nan
    if not controls or not log_odds(before) > log_odds(level) + LEVEL_MARGIN:
        reference, level = NO_REFERENCE, np.nan
    return {"reference": reference, "control_probability": level}


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
    """Compute each pair's mean P(answer) over the prompts of a split; cached."""
    prompts = [pair.prompts(split) for pair in pairs]
    queries = [prompt for group in prompts for prompt in group]
    p = cached_probability(model, queries, kind="control-levels", source=__file__)
    ends = np.cumsum([len(group) for group in prompts])[:-1]
    return [float(part.mean()) for part in np.split(p, ends)]
