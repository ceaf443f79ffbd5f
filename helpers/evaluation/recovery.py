"""Recovery ratios: how much of the known an attack recovers, between controls and original.

The scale of an attack's scores is set by two comparisons: 0 is its score on controls, 1 its score
on the original model. The controls are unrelated ones, or associated ones for an attack that ranks
answers: whatever the subject is associated with ranks high there, known or not (`zero_state`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.battery import Evidence, State
from helpers.stats.equivalence import MIN_UNITS

MIN_PROB = 1e-9  # smaller probabilities count as this in log-odds
MIN_KNOWN_GAP = 0.1  # score by which the original exceeds the control facts on a known prompt


class Recovery(NamedTuple):
    """Recovery of the known by an attack at one budget, in units of the mean known score.

    Attributes:
        budget: The attack's budget; if it is aggregated over all, the one at which the original
            shows most.
        edited: For each prompt the edited model's score less the controls' mean.
        known: For each prompt the original's score less the controls' mean; its mean is 1.
        controls: For each control its score less that of all, mean over prompts.
        max_control_prompt: Largest score of a control's prompt, less the controls' mean.
    """

    budget: float
    edited: Float[np.ndarray, " n"]
    known: Float[np.ndarray, " n"]
    controls: Float[np.ndarray, " k"]
    max_control_prompt: float = 0.0

    def max_control(self) -> float:
        """Return the recovery of the control fact with the highest scores; 0 without any."""
        return float(self.controls.max(initial=0.0))


class NothingKnownError(UserError):
    """The original model knows the answer to too few prompts that an attack could recover."""

    def __init__(self, name: str):
        """Name the attack."""
        super().__init__(
            f"Under {name} the original knows fewer than {MIN_UNITS} prompts better than control "
            "facts: give more prompts, or another pair."
        )


class NotFiniteError(UserError):
    """An attack has scores that are not finite: they show nothing."""

    def __init__(self, name: str):
        """Name the attack."""
        super().__init__(
            f"Some scores of {name} are not finite (NaN or infinite), so they show nothing: look "
            "at the answers of the attacked model."
        )


def zero_state(rows: pd.DataFrame, name: str) -> State:
    """Return the controls that are the zero of an attack's scores.

    Associated controls for an attack that finds those by itself, if there are any; else unrelated
    ones.

    Args:
        rows: The attack's rows of `Evidence.table`.
        name: The attack.
    """
    has_associated = (rows["state"] == State.ASSOCIATED).any()
    return State.ASSOCIATED if ATTACKS[name].needs_associated and has_associated else State.CONTROL


def recovery_ratios(
    evidence: Evidence, name: str, *, min_known_gap: float = MIN_KNOWN_GAP
) -> list[Recovery]:
    """Compute how much of the known an attack recovers, for each budget.

    The ratio is (edited − control) / (original − control), with the mean over prompts in the
    denominator. Prompts that the original does not know at a budget are left out, and so are
    budgets at which it knows fewer than `MIN_UNITS`.

    An attack that aggregates its budgets has one ratio: both means are over the budgets at which
    the original shows at least half of its maximum. The original is not fine-tuned: the ratio at a
    learning rate is the head start over control facts, in units of what is known before training.

    Args:
        evidence: Results of `battery`.
        name: The attack.
        min_known_gap: Least score of the original above the control facts on a known prompt.

    Raises:
        UserError: The original knows fewer than `MIN_UNITS` prompts that the attack could recover,
            or a score is not finite.
    """
    rows = evidence.table[evidence.table["attack"] == name]
    _require_finite(rows, name)
    zero = zero_state(rows, name)
    if not (rows["state"] == zero).any():
        raise UserError(f"{name} has no control facts to compare with: run the battery with some.")
    if ATTACKS[name].fine_tunes:
        known = _known_before(evidence, name, min_known_gap)
        return [_recovery(rows, rate, [rate], known, name) for rate in _scores(rows, State.EDITED)]
    gap = _scores(rows, State.ORIGINAL) - _scores(rows, zero)  # prompts by budgets
    # A pair that is asked instead may lack prompts, such as those with an adjective.
    gap = gap.loc[gap.index.intersection(_scores(rows, State.EDITED).index)]
    if ATTACKS[name].aggregate_budgets:
        mean = gap.mean()
        prompts = gap.index if mean.max() >= min_known_gap else gap.index[:0]
        budgets = mean.index[mean >= mean.max() / 2]
        known = gap.loc[prompts, budgets].mean(axis=1)
        return [_recovery(rows, mean.idxmax(), budgets, known, name)]
    recoveries = []
    for budget in _scores(rows, State.EDITED):
        prompts = gap.index[gap[budget] >= min_known_gap]
        if len(prompts) >= MIN_UNITS:
            known = gap.loc[prompts, budget]
            recoveries.append(_recovery(rows, budget, [budget], known, name))
    if not recoveries:
        raise NothingKnownError(name)
    return recoveries


def _known_before(evidence: Evidence, name: str, min_known_gap: float) -> pd.Series:
    """Compute the original's scores less those of control facts, on prompts that it knows.

    Raises:
        UserError: The attack `paraphrases` was not run, or a score is not finite.
    """
    plain = evidence.table[evidence.table["attack"] == "paraphrases"]
    if plain.empty:
        raise UserError(f"{name} is measured against 'paraphrases': run that attack as well.")
    _require_finite(plain[plain["state"] != State.EDITED], "paraphrases")
    gap = (_scores(plain, State.ORIGINAL) - _scores(plain, State.CONTROL))[0.0]
    return gap[gap >= min_known_gap]


def _recovery(
    rows: pd.DataFrame, budget: float, budgets: Sequence[float], known: pd.Series, name: str
) -> Recovery:
    """Compute (edited − control) / mean(known) for the prompts of `known`, mean over `budgets`.

    A control may lack some prompts: it counts with those that it has.
    """
    if len(known) < MIN_UNITS:
        raise NothingKnownError(name)
    budgets, prompts, unit = list(budgets), known.index, known.mean()

    def mean_score(part: pd.DataFrame, state: State) -> pd.Series:
        return _scores(part, state)[budgets].reindex(prompts).mean(axis=1)

    zero = zero_state(rows, name)
    control = mean_score(rows, zero)
    edited = mean_score(rows, State.EDITED)
    by_subject = rows[rows["state"] == zero].groupby("subject", sort=False)
    above = pd.DataFrame({s: mean_score(part, zero) for s, part in by_subject}).sub(control, axis=0)
    controls = above.mean() - above.mean().mean()
    return Recovery(
        float(budget),
        ((edited - control) / unit).to_numpy(),
        (known / unit).to_numpy(),
        controls.dropna().to_numpy() / unit,
        float(above.max().max()) / unit,
    )


def over_forgetting(evidence: Evidence) -> Float[np.ndarray, " n"]:
    """Compute log-odds of P(target) less those of controls, for each paraphrase.

    The controls are associated ones, if there are any: a model without the fact still associates
    the target with the subject. Strongly negative values mean that the target is suppressed below
    their level.

    Raises:
        UserError: The attack `paraphrases` was not run, or a score is not finite.
    """
    rows = evidence.table[evidence.table["attack"] == "paraphrases"]
    if rows.empty:
        raise UserError("A scar shows on 'paraphrases': run that attack as well.")
    _require_finite(rows, "paraphrases")
    rows = rows.assign(score=log_odds(rows["score"].to_numpy()))
    has_associated = (rows["state"] == State.ASSOCIATED).any()
    zero = State.ASSOCIATED if has_associated else State.CONTROL
    return (_scores(rows, State.EDITED)[0.0] - _scores(rows, zero)[0.0]).to_numpy()


def _require_finite(rows: pd.DataFrame, name: str) -> None:
    if not np.isfinite(rows["score"].to_numpy(dtype=np.float64)).all():
        raise NotFiniteError(name)


def _scores(rows: pd.DataFrame, state: State) -> pd.DataFrame:
    """Tabulate the scores of one state, prompts by budgets, averaged over subjects."""
    part = rows[rows["state"] == state]
    return part.pivot_table(index="prompt", columns="budget", values="score", aggfunc="mean")


def log_odds(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Compute log p / (1 − p) in nats; beyond `MIN_PROB` and 1 − `MIN_PROB` as at these."""
    p = np.clip(p, MIN_PROB, 1 - MIN_PROB)
    return np.log(p / (1 - p))
