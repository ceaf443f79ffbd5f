"""Summaries of a table of `tradeoff`: forgetting against retention, and the best scale."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.evaluation.eval_prompts import RETAINED
from helpers.evaluation.forgetting import two_sided_forgetting
from helpers.stats.intervals import mean_interval

METRICS = {
    "P(target) left": lambda t: t["paraphrases"] / t["paraphrases_before"],
    "back by stitching": lambda t: t["stitching"] / t["paraphrases_before"],
    "neighbours kept": lambda t: t["neighbours"],
    "other facts kept": lambda t: t[[c for c in RETAINED[1:] if c in t]].mean(axis=1),
    "perplexity change": lambda t: t["perplexity_change_factbook"],
}
"""Reported metrics: name → column of a table of `tradeoff`; those of retention are best at 1."""
LEVEL_COLUMNS = ("paraphrases", "paraphrases_before", "control_probability")
"""Columns of two-sided forgetting, in the order of its arguments."""
SCORE = "harmonic mean of two-sided forgetting and the worst group's retention"
"""The definition of the score, for the record of a search."""


def add_summary_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `forgetting`, `retention`, `score` (their harmonic mean) and `one_sided`.

    `forgetting` is two-sided (`helpers.evaluation.forgetting`): 1 at the level of controls, 0 as
    far from it as before, on either side. Without a reference it is 1 − P(target) after / before,
    at least 0, and `one_sided` is 1.

    `retention` is that of the worst group: the least of 1 − `change_<group>`, at least 0. A change
    is the mean over facts of |P(answer) after / before − 1|, so a rise counts as a fall does. It is
    1 where no fact of any group is known.

    The `score` follows ROME's score S (Meng et al. 2022), and chooses the scale.
    """
    if "paraphrases" not in table:
        names = ("forgetting", "retention", "score", "one_sided")
        return table.assign(**dict.fromkeys(names, np.nan))
    scored = table["paraphrases"].notna()
    has_reference = _has_reference(table)
    forgetting = (1 - table["paraphrases"] / table["paraphrases_before"]).clip(lower=0)
    if has_reference.any():
        two_sided = two_sided_forgetting(*(table[c].to_numpy(float) for c in LEVEL_COLUMNS))
        forgetting = forgetting.mask(has_reference, two_sided)
    changes = [f"change_{group}" for group in RETAINED if f"change_{group}" in table]
    retention = (1 - table[changes]).clip(lower=0).min(axis=1).fillna(1.0).where(scored)
    return table.assign(
        forgetting=forgetting,
        retention=retention,
        score=harmonic_mean(forgetting, retention),
        one_sided=(~has_reference).astype(float).where(scored),
    )


def _has_reference(table: pd.DataFrame) -> pd.Series:
    """Mark the rows whose target can be compared with controls."""
    if not set(LEVEL_COLUMNS) <= set(table):
        return pd.Series(False, table.index)
    return table[list(LEVEL_COLUMNS)].notna().all(axis=1)


def harmonic_mean(forgetting: pd.Series, retention: pd.Series) -> pd.Series:
    """Compute the harmonic mean of forgetting and retention; 0 where both are 0."""
    return 2 * forgetting * retention / (forgetting + retention).clip(lower=1e-12)


def summary(table: pd.DataFrame) -> pd.DataFrame:
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
