"""The leaderboard: what chapters measured, as one tidy table and as one row a method."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from helpers.errors import UserError
from helpers.evaluation.meta.verdict_accuracy import WORDS
from helpers.evaluation.tradeoff import METRICS, add_summary_columns
from helpers.io.files import atomic_path
from helpers.stats.intervals import bootstrap

WHO = ["method", "family", "subject", "target", "seed", "share"]
"""What a measurement is of."""
EXACT = {
    "log_odds": "from the oracle",
    "log_odds_low": "from the oracle low",
    "log_odds_high": "from the oracle high",
    "ks": "forget quality",
    "finding": "on the organism",
}
"""Columns of exact verification: as there → as here."""


def tidy(tables: Mapping[str, pd.DataFrame], about: Mapping[str, Mapping]) -> pd.DataFrame:
    """One row per method, fact, seed and metric, with where it comes from.

    Args:
        tables: Step → table of `helpers.evaluation.tradeoff.tradeoff`, held-out facts.
        about: Step → its manifest.

    Returns:
        `WHO`, metric, value, step, and commit, profile and model_hash of the step. A pair that a
        method refused has the metric `refused` with the value 1. A method that two steps measured
        stands once, as the step with the most facts has it, the last of equal ones.

    Raises:
        UserError: There is no table.
    """
    if not tables:
        raise UserError("A leaderboard needs results: run notebooks/06_edit_mlps.ipynb first.")
    found = []
    for step, table in tables.items():
        table = add_summary_columns(table)
        numbers = [c for c in table if c not in WHO and pd.api.types.is_numeric_dtype(table[c])]
        table = table.assign(refused=(table["refused"].fillna("") != "").astype(float))
        long = table.melt(WHO, [*numbers, "refused"], "metric", "value").dropna(subset=["value"])
        long = long[(long["metric"] != "refused") | (long["value"] > 0)]
        keys = ("commit", "profile", "model_hash")
        found.append(long.assign(step=step, **{k: str(about[step].get(k, "")) for k in keys}))
    whole = pd.concat(found, ignore_index=True)
    facts = whole.groupby(["method", "step"], sort=False)["subject"].nunique()
    most = facts.sort_values(kind="stable").reset_index("step").groupby("method")["step"].last()
    return whole[whole["step"] == whole["method"].map(most)].reset_index(drop=True)


def leaderboard(
    measured: pd.DataFrame, *, verdicts: Mapping[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """One row a method, the best balance of forgetting and keeping first.

    Args:
        measured: From `tidy`.
        verdicts: Method → word of its verdict.
        seed: Of the intervals.

    Returns:
        method, family, facts, refused, each of `METRICS` with `… low` and `… high` (95 % over
        facts, seeds of one fact averaged first), forgotten, kept, balance, seconds (median),
        attacks find (on how many facts and seeds the attacks `tradeoff.ATTACKED` find which
        state), verdict, front (no other method forgets more and keeps more).
    """
    rows = []
    for (name, family), part in measured.groupby(["method", "family"], sort=False):
        part = part.assign(run=part["subject"] + part["seed"].astype(str))
        wide = part[part["metric"] != "refused"].pivot_table(
            index=["subject", "seed"], columns="metric", values="value"
        )
        scored = wide.dropna(subset=["paraphrases"]) if "paraphrases" in wide else wide[:0]
        facts = len(set(scored.index.get_level_values("subject")))
        row = {"method": name, "family": family, "facts": facts}
        row["refused"] = int(part.loc[part["metric"] == "refused", "run"].nunique())
        for metric, of in METRICS.items():
            try:
                values = of(wide).groupby("subject").mean().dropna()
            except KeyError:
                values = []
            if len(values):
                m = bootstrap(values.to_numpy(), seed=seed)
                row |= {metric: m.value, f"{metric} low": m.low, f"{metric} high": m.high}
        for axis in ("forgotten", "kept", "balance"):
            row[axis] = wide[axis].groupby("subject").mean().mean() if axis in wide else np.nan
        row["seconds"] = wide["seconds"].median() if "seconds" in wide else np.nan
        row["attacks find"] = _found(wide)
        row["verdict"] = (verdicts or {}).get(str(name), "")
        rows.append(row)
    table = pd.DataFrame(rows).sort_values("balance", ascending=False, ignore_index=True)
    table["front"] = pareto(table["forgotten"].to_numpy(), table["kept"].to_numpy())
    return table


def _found(wide: pd.DataFrame) -> str:
    """How often each state was found, the most frequent first; "" where nothing was attacked."""
    times = {w: int(wide[f"found_{w}"].sum()) for w in WORDS if f"found_{w}" in wide}
    ranked = sorted(times, key=lambda w: -times[w])
    return ", ".join(f"{w} {times[w]}" for w in ranked if times[w])


def with_exact(board: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """A leaderboard with what exact verification says of the same methods on the model organism.

    Args:
        board: From `leaderboard`.
        found: From `helpers.organism.verification.findings`.

    Returns:
        `board` with `from the oracle` (log-odds of the target less the oracle's, nats) and its
        `… low` and `… high` (90 %), `forget quality` (median p-value), `on the organism` (the
        finding): NaN and "" for a method that has not been verified.
    """
    exact = found.set_index("method").rename(columns=EXACT)[list(EXACT.values())]
    return board.join(exact, on="method").fillna({"on the organism": ""})


def write_csv(path: str | Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    return Path(path)


def pareto(
    forgotten: Float[np.ndarray, " n"], kept: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether no other point has at least as much of both and more of one; NaN is never on it."""
    points = np.column_stack([forgotten, kept])
    ahead = (points[:, None] >= points).all(-1) & (points[:, None] > points).any(-1)  # (by, of)
    return ~ahead.any(0) & np.isfinite(points).all(1)
