"""The leaderboard: measurements of several chapters as one tidy table, and as one row a method."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from helpers.errors import UserError
from helpers.evaluation.meta.verdict_accuracy import PREDICTED_STATES
from helpers.evaluation.tradeoff_summary import METRICS, add_summary_columns
from helpers.io.files import atomic_path
from helpers.stats.intervals import mean_interval

ID_COLUMNS = ["method", "family", "subject", "target", "seed", "scale"]
"""Columns that identify a measurement."""
SUMMARY_COLUMNS = ("forgetting", "retention", "score")
EXACT = {
    "log_odds": "from the oracle",
    "log_odds_low": "from the oracle low",
    "log_odds_high": "from the oracle high",
    "ks": "forget quality",
    "finding": "on the organism",
}
"""Columns of exact verification → their names on the leaderboard."""


def tidy(tables: Mapping[str, pd.DataFrame], about: Mapping[str, Mapping]) -> pd.DataFrame:
    """Gather measurements, one row per method, fact, seed and metric, with their provenance.

    Args:
        tables: Step → table of `helpers.evaluation.tradeoff.tradeoff`, held-out facts.
        about: Step → its manifest.

    Returns:
        `ID_COLUMNS`, metric, value, step, and commit, profile and model_hash of the step. A pair
        that a method refused has the metric `refused` with the value 1. Of a method that two steps
        measured, the rows of the step with the most facts count, the last of equal ones.

    Raises:
        UserError: There is no table.
    """
    if not tables:
        raise UserError("A leaderboard needs results: run notebooks/06_edit_mlps.ipynb first.")
    parts = []
    for step, table in tables.items():
        table = add_summary_columns(table)
        numbers = [
            c for c in table if c not in ID_COLUMNS and pd.api.types.is_numeric_dtype(table[c])
        ]
        table = table.assign(refused=(table["refused"].fillna("") != "").astype(float))
        long = table.melt(ID_COLUMNS, [*numbers, "refused"], "metric", "value").dropna(
            subset=["value"]
        )
        long = long[(long["metric"] != "refused") | (long["value"] > 0)]
        keys = ("commit", "profile", "model_hash")
        parts.append(long.assign(step=step, **{k: str(about[step].get(k, "")) for k in keys}))
    measured = pd.concat(parts, ignore_index=True)
    n_facts = measured.groupby(["method", "step"], sort=False)["subject"].nunique()
    n_facts = n_facts.sort_values(kind="stable").reset_index("step")
    best_step = n_facts.groupby("method")["step"].last()
    return measured[measured["step"] == measured["method"].map(best_step)].reset_index(drop=True)


def leaderboard(
    measured: pd.DataFrame, *, verdicts: Mapping[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Summarize measurements, one row a method, the best score first.

    Args:
        measured: From `tidy`.
        verdicts: Method → label of its verdict.
        seed: Seed of the intervals.

    Returns:
        method, family, facts, refused, each of `METRICS` with `… low` and `… high` (95 % over
        facts, seeds of one fact averaged first), forgetting, retention, score, seconds (median),
        attacks find (on how many facts and seeds the attacks `tradeoff.MINI_ATTACKS` predict which
        state), verdict, front (no other method has more of both forgetting and retention).
    """
    rows = []
    for (name, family), part in measured.groupby(["method", "family"], sort=False):
        part = part.assign(run=part["subject"] + part["seed"].astype(str))
        wide = part[part["metric"] != "refused"].pivot_table(
            index=["subject", "seed"], columns="metric", values="value"
        )
        scored = wide.dropna(subset=["paraphrases"]) if "paraphrases" in wide else wide[:0]
        n_facts = len(set(scored.index.get_level_values("subject")))
        row = {"method": name, "family": family, "facts": n_facts}
        row["refused"] = int(part.loc[part["metric"] == "refused", "run"].nunique())
        for metric, column in METRICS.items():
            try:
                values = column(wide).groupby("subject").mean().dropna()
            except KeyError:
                values = []
            if len(values):
                mean = mean_interval(values.to_numpy())
                row |= {metric: mean.value, f"{metric} low": mean.low, f"{metric} high": mean.high}
        for name in SUMMARY_COLUMNS:
            row[name] = wide[name].groupby("subject").mean().mean() if name in wide else np.nan
        row["seconds"] = wide["seconds"].median() if "seconds" in wide else np.nan
        row["attacks find"] = _predicted_states(wide)
        row["verdict"] = (verdicts or {}).get(str(row["method"]), "")
        rows.append(row)
    table = pd.DataFrame(rows).sort_values("score", ascending=False, ignore_index=True)
    table["front"] = pareto(table["forgetting"].to_numpy(), table["retention"].to_numpy())
    return table


def _predicted_states(wide: pd.DataFrame) -> str:
    """Count how often each state was predicted, the most frequent first; "" without attacks."""
    counts = {s: int(wide[f"state_{s}"].sum()) for s in PREDICTED_STATES if f"state_{s}" in wide}
    ranked = sorted(counts, key=lambda s: -counts[s])
    return ", ".join(f"{s} {counts[s]}" for s in ranked if counts[s])


def with_exact(board: pd.DataFrame, findings: pd.DataFrame) -> pd.DataFrame:
    """Add the findings of exact verification of the same methods on the model organism.

    Args:
        board: From `leaderboard`.
        findings: From `helpers.organism.verification.findings`.

    Returns:
        `board` with `from the oracle` (log-odds of the target less the oracle's, nats) and its
        `… low` and `… high` (90 %), `forget quality` (median p-value), `on the organism` (the
        finding): NaN and "" for a method that has not been verified.
    """
    exact = findings.set_index("method").rename(columns=EXACT)[list(EXACT.values())]
    return board.join(exact, on="method").fillna({"on the organism": ""})


def write_csv(path: str | Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    return Path(path)


def pareto(
    forgetting: Float[np.ndarray, " n"], retention: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Mark the points of the Pareto front: no other has as much of both and more of one.

    A point with NaN is never on it.
    """
    points = np.column_stack([forgetting, retention])
    ahead = (points[:, None] >= points).all(-1) & (points[:, None] > points).any(-1)  # (by, of)
    return ~ahead.any(0) & np.isfinite(points).all(1)
