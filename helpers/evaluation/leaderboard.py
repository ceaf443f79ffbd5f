"""The leaderboard: measurements of several chapters as one tidy table, and as one row a method."""

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from helpers.errors import UserError
from helpers.evaluation.meta.meta_evaluation import KnownState
from helpers.evaluation.meta.verdict_accuracy import FOUND, PARTIAL, PREDICTED_STATES, UNDECIDED
from helpers.evaluation.tradeoff_summary import METRICS, add_summary_columns
from helpers.io.files import atomic_path
from helpers.stats.intervals import mean_interval

ID_COLUMNS = ["method", "family", "subject", "target", "seed", "scale"]
"""Columns that identify a measurement."""
SUMMARY_COLUMNS = ("forgetting", "retention", "score")
REPORTED = METRICS | {name: itemgetter(name) for name in SUMMARY_COLUMNS}
"""Name → column of a table of `tradeoff`, each with its interval."""
ABSENT = KnownState.ABSENT.value
INTERVENTION, NOT_ATTACKED = "intervention", "not attacked"
FORMS = ("changes weights", "suppresses", "intervenes")
"""Existing weights change; neurons are appended that can be cut off; activations change alone."""
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
        keys = ("commit", "profile", "model_hash")
        about_step = {key: str(about[step].get(key, "")) for key in keys}
        parts.append(long_rows(table).assign(step=step, **about_step))
    measured = pd.concat(parts, ignore_index=True)
    n_facts = measured.groupby(["method", "step"], sort=False)["subject"].nunique()
    n_facts = n_facts.sort_values(kind="stable").reset_index("step")
    best_step = n_facts.groupby("method")["step"].last()
    return measured[measured["step"] == measured["method"].map(best_step)].reset_index(drop=True)


def long_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Bring a table of `tradeoff` into rows of one number each: `ID_COLUMNS`, metric, value.

    A pair that a method refused has the metric `refused` with the value 1.
    """
    table = add_summary_columns(table)
    for flag in {"removes", "appends"} & set(table):  # blank where a pair was refused
        table[flag] = table[flag].astype(float)
    numbers = [c for c in table if c not in ID_COLUMNS and pd.api.types.is_numeric_dtype(table[c])]
    table = table.assign(refused=(table["refused"].fillna("") != "").astype(float))
    long = table.melt(ID_COLUMNS, [*numbers, "refused"], "metric", "value")
    long = long.dropna(subset=["value"])
    return long[(long["metric"] != "refused") | (long["value"] > 0)]


def leaderboard(
    measured: pd.DataFrame, *, verdicts: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Summarize measurements, one row a method, in the order of what attacks find.

    First are the methods whose fact the attacks find absent every time, then the others by the
    share of facts on which they find it; ties go by forgetting, then by retention. Methods that
    were not attacked follow, and controls stand last, in the same order among themselves.

    Args:
        measured: From `tidy`.
        verdicts: Method → label of its verdict.

    Returns:
        method, family, facts, refused, each of `METRICS`, forgetting and retention with `… low` and
        `… high` (95 % over facts, seeds of one fact averaged first), score, one-sided (facts
        without a reference for two-sided forgetting), seconds (median), attacks find (on how many
        facts and seeds the attacks `tradeoff.MINI_ATTACKS` predict which state), form (one of
        `FORMS`), finding and share found (see `_finding`), verdict, front (no other method is at
        least as good in finding, forgetting and retention, and better in one; never a control).
    """
    rows = [
        {
            "method": name,
            "family": family,
            **_summary_row(part),
            "verdict": (verdicts or {}).get(str(name), ""),
        }
        for (name, family), part in measured.groupby(["method", "family"], sort=False)
    ]
    table = pd.DataFrame(rows)
    table = table.assign(
        is_control=table["family"] == "control", not_absent=table["finding"] != ABSENT
    )
    ascending = {
        "is_control": True,
        "share found": True,
        "not_absent": True,
        "forgetting": False,
        "retention": False,
    }
    table = table.sort_values(
        list(ascending), ascending=list(ascending.values()), kind="stable", ignore_index=True
    )
    table["front"] = False
    # Controls are left out before the comparison: they neither stand on the front nor push off it.
    methods = table[~table["is_control"]]
    objectives = (
        ~methods["not_absent"],
        1 - methods["share found"],
        methods["forgetting"],
        methods["retention"],
    )
    on_front = pareto(*(values.to_numpy(float) for values in objectives))
    table.loc[methods.index, "front"] = on_front
    return table.drop(columns=["is_control", "not_absent"])


def _summary_row(part: pd.DataFrame) -> dict[str, Any]:
    """Summarize the measurements of one method."""
    wide = part[part["metric"] != "refused"].pivot_table(
        index=["subject", "seed"], columns="metric", values="value"
    )
    scored = wide.dropna(subset=["paraphrases"]) if "paraphrases" in wide else wide[:0]
    refused = part.loc[part["metric"] == "refused", ["subject", "seed"]].drop_duplicates()
    row: dict[str, Any] = {"facts": _n_facts(scored), "refused": len(refused)}
    for metric, column in REPORTED.items():
        try:
            values = column(wide).groupby("subject").mean().dropna()
        except KeyError:
            values = []
        if len(values):
            mean = mean_interval(values.to_numpy())
            row |= {metric: mean.value, f"{metric} low": mean.low, f"{metric} high": mean.high}
    for metric in SUMMARY_COLUMNS:
        row.setdefault(metric, np.nan)
    row["one-sided"] = _n_facts(scored[scored["one_sided"] == 1]) if len(scored) else 0
    row["seconds"] = wide["seconds"].median() if "seconds" in wide else np.nan
    finding, share = _finding(scored, len(refused))
    counts = _predicted_states(scored)
    row["attacks find"] = INTERVENTION if finding == INTERVENTION else counts
    return row | {"form": _form(scored), "finding": finding, "share found": share}


def _form(scored: pd.DataFrame) -> str:
    """Say by what a method forgets: `FORMS`; "" where it was not recorded."""
    if not len(scored) or not {"removes", "appends"} <= set(scored):
        return ""
    changes, suppresses, intervenes = FORMS
    if not scored["removes"].any():
        return intervenes
    return suppresses if scored["appends"].any() else changes


def _n_facts(wide: pd.DataFrame) -> int:
    return len(set(wide.index.get_level_values("subject")))


def _finding(scored: pd.DataFrame, n_refused: int) -> tuple[str, float]:
    """Say what the attacks find over all facts, and on which share of the facts they find it.

    Args:
        scored: One row a fact and seed, a column a metric.
        n_refused: Facts and seeds that the method refused, which leaves the fact in the model.

    Returns:
        `intervention`: the weights are the original's, so they have every fact (share 1).
        `absent`: none was refused, and on each the attacks are shown to find nothing.
        `found`: on at least one fact it is in one of `FOUND`. `partial`: on none, but on one a part
        of it. `undecided`: none of these. `not attacked`: the attacks were not run (share NaN). The
        share is a mean over facts, of seeds first.
    """
    if len(scored) and "removes" in scored and not scored["removes"].any():
        return INTERVENTION, 1.0
    columns = [f"state_{state}" for state in PREDICTED_STATES if f"state_{state}" in scored]
    # Rows that were measured before a state had its name lack that column alone.
    states = scored[columns].dropna(how="all").fillna(0)
    if states.empty or not columns:
        return NOT_ATTACKED, np.nan
    is_found = states[[c for c in columns if c.removeprefix("state_") in FOUND]].sum(axis=1)
    share = float(is_found.groupby("subject").mean().mean())
    if share > 0:
        return "found", share
    if f"state_{PARTIAL}" in states and states[f"state_{PARTIAL}"].any():
        return PARTIAL, share
    all_absent = states[f"state_{ABSENT}"].all() and len(states) == len(scored) and not n_refused
    return (ABSENT if all_absent else UNDECIDED), share


def _predicted_states(wide: pd.DataFrame) -> str:
    """Count how often each state was predicted, the most frequent first; "" without attacks."""
    counts = {s: int(wide[f"state_{s}"].sum()) for s in PREDICTED_STATES if f"state_{s}" in wide}
    ranked = sorted(counts, key=lambda s: -counts[s])
    return ", ".join(f"{s} {counts[s]}" for s in ranked if counts[s])


def by_fact(measured: pd.DataFrame) -> pd.DataFrame:
    """List what each method leaves of each fact; seeds of a fact are averaged.

    Args:
        measured: From `tidy`.

    Returns:
        method, subject, by name and by stitching (P(target) in held-out wordings, and the same
        under the original's upper layers), before (of the original, by name), and state (the one
        that the attacks predict most often; "" where they were not run). Pairs that a method
        refused are left out.
    """
    wide = measured.pivot_table(index=["method", "subject"], columns="metric", values="value")
    names = {
        "paraphrases": "by name",
        "stitching": "by stitching",
        "paraphrases_before": "before",
    }
    states = wide.reindex(columns=[f"state_{s}" for s in PREDICTED_STATES]).fillna(0)
    states.columns = list(PREDICTED_STATES)
    table = wide.reindex(columns=list(names)).rename(columns=names)
    table["state"] = states.idxmax(axis=1).where(states.max(axis=1) > 0, "")
    return table.dropna(subset=["by name", "before"]).reset_index()


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


def pareto(*objectives: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Mark the points of the Pareto front: no other has as much of all and more of one.

    A point with NaN is never on it.

    Args:
        objectives: Of each point; more is better.
    """
    points = np.column_stack(objectives)
    ahead = (points[:, None] >= points).all(-1) & (points[:, None] > points).any(-1)  # (by, of)
    return ~ahead.any(0) & np.isfinite(points).all(1)
