"""Methods by the kind of request: pairs, whole entities, capabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.io.code_version import REPOSITORY
from helpers.io.files import read_json
from helpers.stats.intervals import format_interval

RESULTS = REPOSITORY / "benchmarks" / "results"
FILES = ("entities.json", "capabilities.json")  # of `benchmarks/request_kinds.py`
COLUMNS = ["kind", "method", "requests", "forgotten", "what must stay", "seconds"]
PAIR, ENTITY = "pair", "entity"


def by_kind(board: pd.DataFrame, *, folder: str | Path = RESULTS) -> pd.DataFrame:
    """List methods by the kind of request, those that forget most first.

    The measures differ, so numbers of one kind alone compare. Forgotten is of a pair two-sided
    forgetting, of an entity 1 − (mean P(target) after / before), of a capability the share of the
    way to its floor. What must stay is of a pair the retention, of an entity min(1, after / before)
    of other subjects, of a capability the largest change of a loss.

    Args:
        board: From `helpers.evaluation.leaderboard.leaderboard`: the pairs.
        folder: Where the measured entities and capabilities are; a kind without a file is left out.

    Returns:
        `COLUMNS`, as text but for `requests`, their number.

    Raises:
        UserError: A file is damaged.
    """
    rows = [(row["forgetting"], _pair_row(row)) for row in board.to_dict("records")]
    rows = [(forgotten, row) for forgotten, row in rows if pd.notna(forgotten)]
    parts = [rows, *(_measured(Path(folder) / name) for name in FILES)]
    tables = [
        pd.DataFrame([row for _, row in part], columns=COLUMNS)
        .assign(_order=[forgotten for forgotten, _ in part])
        .sort_values(["kind", "_order"], ascending=[True, False], kind="stable")
        for part in parts
        if part
    ]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    return table[COLUMNS]


def _pair_row(row: dict[str, Any]) -> list[Any]:
    """Return the columns of a method on pairs."""
    forgotten, kept = (
        format_interval(*(row[f"{metric}{end}"] for end in ("", " low", " high")))
        for metric in ("forgetting", "retention")
    )
    seconds = f"{row['seconds']:.1f}" if pd.notna(row["seconds"]) else "–"
    return [PAIR, row["method"], row["facts"], forgotten, kept, seconds]


def _measured(path: Path) -> list[tuple[float, list[Any]]]:
    """Return the share forgotten and the columns of each row of a file; none without the file."""
    if not path.exists():
        return []
    reported: Sequence[dict[str, Any]] = read_json(path)["rows"]
    rows = []
    for row in reported:
        if "named" in row and row["entities"]:  # an entity; the mean stands before its interval
            forgotten = 1 - _mean(row["named"]) / _mean(row["before"])
            columns = [ENTITY, row["method"], row["entities"], f"{forgotten:.3f}"]
            rows.append((forgotten, [*columns, row["neighbours"], row["seconds"]]))
        elif row.get("forgotten", "–") != "–":
            columns = [row["capability"], row["method"], 1, row["forgotten"]]
            columns += [row["largest change elsewhere"], row["seconds"]]
            rows.append((_mean(row["forgotten"]), columns))
    return rows


def _mean(text: str) -> float:
    """Read the mean of a number with its interval."""
    return float(text.split()[0])
