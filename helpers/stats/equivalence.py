"""Tests of equivalence, and corrections for several tests."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from helpers.errors import UserError

MIN_UNITS = 3  # independent units that a test or a t-interval needs


def tost(values: Float[np.ndarray, " n"], *, low: float, high: float) -> tuple[float, float, float]:
    """Compute two one-sided t-tests that the mean lies between `low` and `high`.

    Schuirmann 1987, "A comparison of the two one-sided tests procedure".

    Args:
        values: One number per independent unit.
        low: Lower equivalence bound.
        high: Upper equivalence bound.

    Returns:
        (p of "between", the larger of the two; p of "above `high`"; p of "below `low`").

    Raises:
        UserError: There are fewer than `MIN_UNITS` units, or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < MIN_UNITS:
        raise UserError(f"A test needs at least {MIN_UNITS} prompts or facts; there are {n}.")
    if not np.isfinite(values).all():
        raise UserError(
            f"A test needs finite values; {int((~np.isfinite(values)).sum())} of {n} are not: see "
            "which attack has such scores, and leave it out or run it again."
        )
    # Equal values have no spread; the bound keeps the statistic finite.
    error = max(values.std(ddof=1) / np.sqrt(n), 1e-12)
    p_upper = stats.t.cdf((values.mean() - high) / error, n - 1)  # small if well below high
    p_lower = stats.t.sf((values.mean() - low) / error, n - 1)  # small if well above low
    return float(max(p_upper, p_lower)), float(1 - p_upper), float(1 - p_lower)


def welch(units: Float[np.ndarray, " n"], controls: Float[np.ndarray, " k"]) -> tuple[float, float]:
    """Test the mean of `units` less that of `controls` against 0; both groups vary.

    Welch 1947, with the degrees of freedom of Satterthwaite 1946. A single control has no spread of
    its own: it counts as a number.

    Args:
        units: One number an independent unit.
        controls: One number a control.

    Returns:
        (p of "below 0", p of "above 0").
    """
    groups = [np.asarray(x, dtype=np.float64) for x in (units, controls) if len(x) > 1]
    variances = np.array([x.var(ddof=1) / len(x) for x in groups])
    error = max(float(np.sqrt(variances.sum())), 1e-12)  # equal values have no spread
    weights = variances**2 / np.array([len(x) - 1 for x in groups])
    dof = variances.sum() ** 2 / weights.sum() if weights.sum() else len(units) - 1
    difference = float(np.mean(units)) - (float(np.mean(controls)) if len(controls) else 0.0)
    return float(stats.t.cdf(difference / error, dof)), float(stats.t.sf(difference / error, dof))


def holm(p: Sequence[float]) -> Float[np.ndarray, " n"]:
    """Correct p-values for their number by Holm's (1979) step-down procedure.

    The k-th smallest of n is multiplied by n − k + 1; none becomes smaller than one before it.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    in_order = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    corrected = np.empty_like(in_order)
    corrected[order] = in_order
    return corrected


def t_interval(values: Float[np.ndarray, " n"], *, alpha: float) -> tuple[float, float, float]:
    """Compute a mean with its 1 − 2 alpha interval by Student's t.

    The interval lies within bounds exactly when both one-sided tests at level alpha reject.

    Args:
        values: One number per independent unit.
        alpha: Level of each one-sided test.

    Returns:
        (mean, low, high); the ends are NaN for fewer than `MIN_UNITS` units.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, n = float(values.mean()), len(values)
    if n < MIN_UNITS:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(1 - alpha, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half
