"""Intervals of means: values by hand and of SciPy, and what they cover by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers.errors import UserError
from helpers.stats.intervals import (
    MIN_INTERVAL_UNITS,
    Metric,
    format_interval,
    linearized_ratio,
    mean_interval,
    mean_interval_by,
    metrics_by,
)

REPEATS = 4000
DRAWS = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "probabilities": (lambda rng, n: rng.beta(8, 2, size=n), 0.8),  # skewness −0.8
    "ratios": (lambda rng, n: rng.lognormal(0, 0.3, size=n), np.exp(0.045)),  # skewness 0.9
}


def coverage(interval, draw, mean: float, n: int, repeats: int = REPEATS) -> float:
    """Simulate how often the interval of n values has the true mean in it."""
    rng = np.random.default_rng(n)
    intervals = np.array([interval(draw(rng, n)) for _ in range(repeats)])
    return float(((intervals[:, 0] <= mean) & (mean <= intervals[:, 1])).mean())


def t_ends(values) -> tuple[float, float]:
    metric = mean_interval(values)
    return metric.low, metric.high


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("n", [5, 8, 20])
def test_an_interval_covers_what_it_says(kind, n):
    tolerance = 0.015 if kind == "normal" else 0.035  # three standard errors are 0.01
    assert coverage(t_ends, *DRAWS[kind], n) == pytest.approx(0.95, abs=tolerance)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_no_bootstrap_would_cover_it_with_few_units(method):
    """The reason for Student's t, which covers more on the same draws."""

    def ends(values) -> tuple[float, float]:
        rng = np.random.default_rng(0)
        interval = stats.bootstrap(
            (values,), np.mean, method=method, n_resamples=500, rng=rng
        ).confidence_interval
        return interval.low, interval.high

    draw = DRAWS["probabilities"]
    assert coverage(ends, *draw, 5, repeats=400) < coverage(t_ends, *draw, 5, repeats=400) - 0.05


def test_interval_by_hand():
    # mean 3, standard deviation √2.5; t of 4 degrees of freedom at 97.5 % is 2.776
    m = mean_interval([1, 2, 3, 4, 5])
    assert (m.value, m.n) == (3, 5)
    assert (m.low, m.high) == pytest.approx((3 - 2.776 / 2**0.5, 3 + 2.776 / 2**0.5), abs=1e-3)
    assert mean_interval([2, 2, 2, 2, 2]) == Metric(2, 2, 2, 5)


def test_interval_is_scipys():
    values = np.random.default_rng(1).exponential(size=30)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    m = mean_interval(values)
    assert (m.value, m.low, m.high) == pytest.approx((values.mean(), low, high))


@pytest.mark.parametrize("n", range(1, MIN_INTERVAL_UNITS))
def test_few_values_have_no_interval(n):
    m = mean_interval(np.linspace(0.2, 0.4, n) if n > 1 else [0.3])
    assert m.value == pytest.approx(0.3) and m.n == n
    assert np.isnan([m.low, m.high]).all()
    assert str(m) == f"0.30, n = {n}"
    assert format_interval(m.value, m.low, m.high) == "0.300"


def test_a_metric_is_written_with_as_many_digits_as_it_needs():
    assert str(Metric(0.931, 0.85, 0.97, 24)) == "0.93 [0.85, 0.97], n = 24"
    assert str(Metric(24.785, 20, 30.04, 8)) == "24.8 [20.0, 30.0], n = 8"
    assert str(Metric(0.00231, 0.0011, 0.0037, 11)) == "0.0023 [0.0011, 0.0037], n = 11"
    assert str(Metric(-0.042, -0.1, 0, 8)) == "-0.042 [-0.100, 0.000], n = 8"
    assert str(Metric(0, -0.0004, 0, 5)) == "0.00 [0.00, 0.00], n = 5"
    assert format_interval(-0.0001, -0.0007, 0.0004) == "0.000 [-0.001, 0.000]"
    assert format_interval(0.5, np.nan, np.nan) == "0.500" and format_interval(np.nan, 0, 0) == "–"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_values_that_are_missing_or_not_finite_are_refused(values):
    sentence = f"there are {len(values)}, of which {np.isfinite(values).sum()} are finite"
    with pytest.raises(UserError, match=sentence) as caught:
        mean_interval(values)
    assert "\n" not in str(caught.value)


def test_a_table_is_summarized_group_by_group():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"site": list("bbaabb") * 3, "layer": [1, 1, 0, 0, 2, 2] * 3})
    table = table.assign(x=rng.random(18))
    got = mean_interval_by(table, "x", by=["site", "layer"])
    assert list(got.columns) == ["site", "layer", "value", "low", "high", "n"]
    assert list(zip(got["site"], got["layer"], strict=True)) == [("b", 1), ("a", 0), ("b", 2)]
    for row in got.itertuples():
        part = table[(table["site"] == row.site) & (table["layer"] == row.layer)]
        assert Metric(row.value, row.low, row.high, row.n) == mean_interval(part["x"])
    assert list(mean_interval_by(table, "x", by=["site"])["site"]) == ["b", "a"]
    assert metrics_by(table, "x", by="site")["a"] == mean_interval(table[table["site"] == "a"]["x"])


def test_the_interval_of_a_ratio_covers_what_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(REPEATS):
        bottom = rng.uniform(0.5, 1.5, 8)
        top = 0.3 * bottom + rng.normal(0, 0.1, 8)
        m = mean_interval(linearized_ratio(top, bottom))
        assert m.value == pytest.approx(top.sum() / bottom.sum())
        hits += m.low <= 0.3 <= m.high
    assert hits / REPEATS == pytest.approx(0.95, abs=0.02)
    same = np.array([0.0, 0.0, 3.0])  # where a resample's denominator may be 0
    assert linearized_ratio(same, same).tolist() == [1, 1, 1]
