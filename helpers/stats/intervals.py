"""Means with their interval by Student's t, over independent units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from helpers.errors import UserError
from helpers.stats.equivalence import t_interval

MIN_INTERVAL_UNITS = 5  # with fewer, an interval is too wide to say anything, or covers too little


@dataclass(frozen=True)
class Metric:
    """A mean over `n` units with its 95 % interval.

    Attributes:
        value: The mean.
        low: Lower end; NaN where so few units give no interval.
        high: Upper end; NaN where so few units give no interval.
        n: Number of independent units: facts, prompts or passages.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Format as `0.93 [0.85, 0.97], n = 24`; below 0.1 with two significant digits."""
        digits = 2 if abs(self.value) < 10 else 1
        if 0 < abs(self.value) < 0.1:
            digits = min(4, 1 - int(np.floor(np.log10(abs(self.value)))))
        return f"{_format(self.value, self.low, self.high, digits)}, n = {self.n}"


def format_interval(value: float, low: float, high: float) -> str:
    """Format as `0.930 [0.850, 0.970]`; without an interval the value alone, NaN as a dash."""
    if np.isnan(value):
        return "–"
    return _format(value, low, high, 3)


def _format(value: float, low: float, high: float, digits: int) -> str:
    mean, *ends = (f"{round(x, digits) + 0.0:.{digits}f}" for x in (value, low, high))  # no -0.00
    return mean if np.isnan(low) else f"{mean} [{', '.join(ends)}]"


def mean_interval(values: Float[np.ndarray, " n"]) -> Metric:
    """Compute the mean and its 95 % interval by Student's t (Student 1908).

    At n = 5 it covers the mean of normal values in 95 % of cases, of moderately skewed ones in
    93 %, of strongly skewed ones in 89 %; percentile and BCa bootstraps cover about 83 %
    (`tests/stats/test_intervals.py`). It may reach past the values that are possible, such as a
    probability of 1. Equal values give no width.

    Args:
        values: One number per independent unit; average prompts of one fact first.

    Returns:
        The mean; the ends are NaN for fewer than `MIN_INTERVAL_UNITS` units.

    Raises:
        UserError: There is no value, or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    n = len(values)
    if not n or not np.isfinite(values).all():
        raise UserError(
            f"A mean with its interval needs finite values; there are {n}, of which "
            f"{int(np.isfinite(values).sum())} are finite."
        )
    mean, low, high = t_interval(values, alpha=0.025)
    if n < MIN_INTERVAL_UNITS:
        low = high = float("nan")
    return Metric(mean, low, high, n)


def linearized_ratio(
    top: Float[np.ndarray, " n"], bottom: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Compute values whose mean is r = mean(top) / mean(bottom), and varies as r does.

    r + (top − r · bottom) / mean(bottom) is the ratio to first order (the delta method). What the
    two share unit by unit cancels, so it is no noise.

    Args:
        top: One number per independent unit.
        bottom: As many, of the same units.
    """
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    ratio = top.mean() / bottom.mean()
    return ratio + (top - ratio * bottom) / bottom.mean()


def metrics_by(table: pd.DataFrame, column: str, *, by: str) -> dict[str, Metric]:
    """Compute `mean_interval` of one column for each value of another, in the table's order."""
    return {
        str(group): mean_interval(part[column].to_numpy(float))
        for group, part in table.groupby(by, sort=False)
    }


def mean_interval_by(table: pd.DataFrame, column: str, *, by: Sequence[str]) -> pd.DataFrame:
    """Compute `mean_interval` of one column for each group.

    Returns:
        One row a group: the columns of `by`, value, low, high, n.
    """
    rows = []
    for group, part in table.groupby(list(by), sort=False):
        mean = mean_interval(part[column].to_numpy())
        rows.append((*group, mean.value, mean.low, mean.high, mean.n))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n"])
