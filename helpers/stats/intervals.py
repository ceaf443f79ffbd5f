"""Estimates with their interval: percentile bootstrap over independent units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from helpers.errors import UserError

REPETITIONS = 2000  # resamples


@dataclass(frozen=True)
class Metric:
    """A mean over `n` units with its 95 % bootstrap interval.

    Attributes:
        value: The mean.
        low: Lower end; NaN where one unit alone gives no interval.
        high: Upper end; NaN where one unit alone gives no interval.
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


def bootstrap(
    values: Float[np.ndarray, " n"], *, seed: int = 0, repetitions: int = REPETITIONS
) -> Metric:
    """Compute the mean and its 95 % percentile interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        values: One number per independent unit; average prompts of one fact first.
        seed: Draws the resamples.
        repetitions: Number of resamples.

    Raises:
        UserError: There is no value, or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise UserError(
            f"An interval needs finite values, at least two for a width; there are {len(values)}, "
            f"of which {int(np.isfinite(values).sum())} are finite."
        )
    mean = float(values.mean())
    if len(values) == 1:
        return Metric(mean, float("nan"), float("nan"), 1)
    rng = np.random.default_rng(seed)
    index = rng.integers(len(values), size=(repetitions, len(values)))
    low, high = np.percentile(values[index].mean(1), [2.5, 97.5])
    return Metric(mean, float(low), float(high), len(values))


def metrics_by(table: pd.DataFrame, column: str, *, by: str, seed: int = 0) -> dict[str, Metric]:
    """Bootstrap one column for each value of another, in the order of the table."""
    return {
        str(group): bootstrap(part[column].to_numpy(float), seed=seed)
        for group, part in table.groupby(by, sort=False)
    }


def bootstrap_by(
    table: pd.DataFrame, column: str, *, by: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Bootstrap one column for each group.

    Returns:
        One row a group: the columns of `by`, value, low, high, n.
    """
    rows = []
    for group, part in table.groupby(list(by), sort=False):
        mean = bootstrap(part[column].to_numpy(), seed=seed)
        rows.append((*group, mean.value, mean.low, mean.high, mean.n))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n"])
