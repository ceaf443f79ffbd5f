"""Summaries of a table of `tradeoff`: forgetting against retention, and the best scale."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.evaluation.eval_prompts import RETAINED
from helpers.stats.intervals import mean_interval

METRICS = {
    "P(target) left": lambda t: t["paraphrases"] / t["paraphrases_before"],
    "back by stitching": lambda t: t["stitching"] / t["paraphrases_before"],
    "neighbours kept": lambda t: t["neighbours"],
    "other facts kept": lambda t: t[[c for c in RETAINED[1:] if c in t]].mean(axis=1),
    "perplexity change": lambda t: t["perplexity_change_factbook"],
}
"""Reported metrics: name → column of a table of `tradeoff`; those of retention are best at 1."""


def add_summary_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `forgetting`, `retention` and `score`, their harmonic mean.

    `forgetting` = 1 − P(target) after / before on paraphrases, at least 0. `retention` = the mean
    over neighbours, other facts of the subject and of the target of P(answer) after / before, each
    group at most 1. The `score` follows ROME's score S (Meng et al. 2022), and chooses the scale.
    """
    if "paraphrases" not in table:
        return table.assign(forgetting=np.nan, retention=np.nan, score=np.nan)
    groups = [g for g in RETAINED if g in table]
    forgetting = (1 - table["paraphrases"] / table["paraphrases_before"]).clip(lower=0)
    retention = table[groups].clip(upper=1).mean(axis=1) if groups else 1.0
    retention = pd.Series(retention, table.index)
    score = harmonic_mean(forgetting, retention)
    return table.assign(forgetting=forgetting, retention=retention, score=score)


def harmonic_mean(forgetting: pd.Series, retention: pd.Series) -> pd.Series:
    """Compute the harmonic mean of forgetting and retention; 0 where both are 0."""
    return 2 * forgetting * retention / (forgetting + retention).clip(lower=1e-12)


def summary(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Average each of `METRICS` over facts, with its interval; seeds of a fact are averaged first.

    Returns:
        One row a method and metric: method, family, metric, value, low, high, n. Refused pairs,
        and metrics that were not measured, are left out.
    """
    rows = []
    for (name, family), part in table.groupby(["method", "family"], sort=False):
        for metric, column in METRICS.items():
            try:
                values = part.assign(value=column(part)).groupby("subject")["value"].mean().dropna()
            except KeyError:  # no fact had such a group
                continue
            if len(values):
                mean = mean_interval(values.to_numpy())
                rows.append({"method": name, "family": family, "metric": metric, **vars(mean)})
    return pd.DataFrame(rows)


def first_retention_metric(summarized: pd.DataFrame) -> str | None:
    """Return the first of `METRICS` on retention that `summary` has; None without any."""
    measured = set(summarized["metric"])
    return next((m for m in METRICS if m.endswith(" kept") and m in measured), None)


def most_recovered(summarized: pd.DataFrame, *, families: Sequence[str]) -> str:
    """Name the method whose P(target) rises most by stitching, with both values, in words.

    Args:
        summarized: From `summary`.
        families: Families of methods that are compared.
    """
    rows = summarized[summarized["family"].isin(families)]
    wide = rows.pivot(index="method", columns="metric")["value"]
    if "back by stitching" not in wide or wide["back by stitching"].isna().all():
        return "none (it was not measured)"
    stitched, remaining = wide["back by stitching"], wide["P(target) left"]
    name = (stitched - remaining).idxmax()
    return f"{name} ({stitched[name]:.3f} of it, where {remaining[name]:.3f} is left without)"


def best_scales(table: pd.DataFrame) -> dict[str, float]:
    """Choose for each method the scale with the best mean `score` over the facts of `table`.

    Controls take the scale 1: their size is that of the method that they stand for. So does a
    method that refused every fact.
    """
    scales = {}
    for name, part in table.groupby("method", sort=False):
        means = part.dropna(subset=["score"]).groupby("scale")["score"].mean()
        is_control = (part["family"] == "control").all()
        scales[str(name)] = 1.0 if is_control or means.empty else float(means.idxmax())
    return scales
