"""Metrics by where they read, and which of a group separate a state from absent facts."""

from collections.abc import Sequence

import pandas as pd

from helpers.evaluation.meta.meta_evaluation import Discrimination, KnownState

ANSWER_METRICS = (
    "mean P(target)",
    "largest P(target)",
    "rank",
    "greedy",
    "truth ratio",
    "exact memorisation",
    "extraction strength",
)
"""Metrics that read the answer in the model's output alone."""
INSIDE_METRICS = ("logit lens", "depth")
"""Metrics that read the model's states below the output."""


def discriminates(aucs: pd.DataFrame, state: KnownState, metrics: Sequence[str]) -> list[bool]:
    """List for each of several metrics if it separates a state from absent facts.

    Args:
        aucs: From `helpers.evaluation.meta.meta_evaluation.metric_aucs`.
        state: The state: present or hidden.
        metrics: Names of metrics; those that were not measured are left out.
    """
    rows = aucs[(aucs["state"] == state) & aucs["metric"].isin(metrics)]
    return [finding == Discrimination.DISCRIMINATES for finding in rows["finding"]]


def measured_names(aucs: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Name those of several metrics that were measured, as `logit lens and depth`.

    Args:
        aucs: From `helpers.evaluation.meta.meta_evaluation.metric_aucs`.
        metrics: Names of metrics.
    """
    measured = set(aucs["metric"])
    return " and ".join(name for name in metrics if name in measured) or "metrics of this kind"
