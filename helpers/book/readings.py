"""Outcomes of predictions: rules that compare numbers, and the words that a page shows.

A chapter computes an outcome beside the numbers that test its prediction, and glues the text of
`tell` or `tell_parts`. An outcome is yes or no only where the numbers decide. Otherwise it is too
few to tell, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from helpers.stats.intervals import MIN_INTERVAL_UNITS, Metric

ISOLATES_KEY = frozenset({"rome", "memit", "alphaedit", "gated_neuron", "sae_pair", "t_patcher"})
"""Methods whose change acts at the subject's key alone."""
REMOVES_SHARED = frozenset(
    [
        "neurons",
        "knowledge_neurons",
        "needle",
        "mean_difference",
        "leace",
        "sae_direction",
        "pisces",
    ]
)
"""Methods that delete or project neurons and directions, which other facts may share."""
RAISES_LOSS = frozenset(
    [
        "gradient_ascent",
        "gradient_difference",
        "kl_minimisation",
        "npo",
        "simnpo",
        "weighted_ascent",
    ]
)
"""Training methods whose loss pushes the target down."""


class Held(StrEnum):
    """Answer to the question if a prediction held."""

    YES = "yes"
    NO = "no"
    TOO_FEW = "too few to tell"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a prediction, or of a part of it.

    Attributes:
        held: The answer.
        reason: Why the numbers do not decide; empty where they do.
    """

    held: Held
    reason: str = ""

    def __str__(self) -> str:
        """Format as `yes`, or as `too few to tell: n = 3`."""
        return f"{self.held}: {self.reason}" if self.reason else str(self.held)

    def tell(self, measured: str, *, yes: str = "", no: str = "") -> str:
        """Return the outcome, what was measured, and the conclusion, in sentences.

        Args:
            measured: The numbers in words that are true whatever they are, without a full stop.
            yes: Conclusion where the prediction held, without its full stop.
            no: Conclusion where it did not.
        """
        if self == NOT_MEASURED:
            return f"{self}."
        conclusion = {Held.YES: yes, Held.NO: no}.get(self.held)
        return " ".join(f"{part}." for part in (self, measured, conclusion) if part)


NOT_MEASURED = Outcome(Held.TOO_FEW, "not measured")


def held_if(*margins: float, n: int | None = None) -> Outcome:
    """Compare numbers: yes if every margin is above zero, no if one is not.

    Args:
        *margins: The number that is predicted to be larger less the other one, so that a tie is a
            no; or a condition on counts. One that is not finite was not measured.
        n: Number of units over which the numbers are means, at least `MIN_INTERVAL_UNITS` for an
            answer. None for numbers of one fact and one model, which are no sample.
    """
    values = np.array(margins, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return NOT_MEASURED
    if n is not None and n < MIN_INTERVAL_UNITS:
        return Outcome(Held.TOO_FEW, f"n = {n}")
    return Outcome(Held.YES if (values > 0).all() else Held.NO)


def in_every_case(cases: Sequence[bool]) -> Outcome:
    """Check a prediction about every case: one exception is a no, few cases without one are open.

    Args:
        cases: True for each case in which it held.
    """
    if not len(cases):
        return NOT_MEASURED
    if not all(cases):
        return Outcome(Held.NO)
    if len(cases) < MIN_INTERVAL_UNITS:
        return Outcome(Held.TOO_FEW, f"n = {len(cases)}")
    return Outcome(Held.YES)


def lies_above(metric: Metric | None, bound: float = 0.0) -> Outcome:
    """Compare a mean's interval with a bound: yes above it, no below it, open across it.

    Args:
        metric: The mean with its interval; None if it was not measured.
        bound: The bound; 0 for a difference.
    """
    if metric is None or np.isnan(metric.value):
        return NOT_MEASURED
    if np.isnan(metric.low) or np.isnan(metric.high):
        return Outcome(Held.TOO_FEW, f"n = {metric.n}")
    if metric.low > bound:
        return Outcome(Held.YES)
    if metric.high < bound:
        return Outcome(Held.NO)
    return Outcome(Held.TOO_FEW, f"the interval includes {bound:.3g}")


def lies_below(metric: Metric | None, bound: float = 0.0) -> Outcome:
    """Compare a mean's interval with a bound: yes below it, no above it, open across it.

    Args:
        metric: The mean with its interval; None if it was not measured.
        bound: The bound; 0 for a difference.
    """
    outcome = lies_above(metric, bound)
    opposite = {Held.YES: Held.NO, Held.NO: Held.YES}
    return Outcome(opposite.get(outcome.held, outcome.held), outcome.reason)


def difference(first: Metric, second: Metric) -> Metric:
    """Subtract the means of two independent samples; the halves of their intervals add in squares.

    Returns:
        The difference, with the smaller of the two n; without an interval if one has none.
    """
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    high = value + np.hypot(first.high - first.value, second.value - second.low)
    return Metric(value, float(low), float(high), min(first.n, second.n))


def tell_parts(parts: Mapping[str, Outcome]) -> str:
    """Tell the outcome of a prediction that has several parts, and that of each part.

    It held if all parts did, and did not if one did not. An open part has its reason alone.

    Args:
        parts: A part in words → its outcome.
    """
    if set(parts.values()) == {NOT_MEASURED}:
        return f"{NOT_MEASURED}."
    answers = [outcome.held for outcome in parts.values()]
    held = Held.TOO_FEW
    if Held.NO in answers:
        held = Held.NO
    elif all(answer == Held.YES for answer in answers):
        held = Held.YES
    listed = "; ".join(f"{part} ({o.reason or o.held})" for part, o in parts.items())
    return f"{held}, {answers.count(Held.YES)} of {len(answers)} parts: {listed}."


def tell_gentlest(left: pd.Series, retention: pd.Series, *, below: float = 0.1) -> str:
    """Say which of the methods that leave little of the target has the best retention.

    Args:
        left: Method → share of P(target) that is left; NaN where it was not measured.
        retention: Method → retention; other methods are passed over.
        below: Bound of what counts as little.
    """
    names = left.index[left < below]
    kept = retention.reindex(names).dropna()
    little = f"under {below:.0%} of the target's probability"
    if len(names) < 2:
        return f"Only {names[0]} leaves {little}." if len(names) else f"No method leaves {little}."
    if kept.empty:
        return f"Retention after the {len(names)} that leave {little} was not measured."
    return f"Of the {len(names)} that leave {little}, {kept.idxmax()} has the best retention."
