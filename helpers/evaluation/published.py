"""The published results: every method on many facts, kept in the repository as one tidy table.

They are measured by `make results`, in pieces, over hours. A book shows them beside its own run,
which has a few facts. Each row knows the code that made it, so that a row of a method that has
changed since is marked, and measured again.
"""

import zlib
from collections.abc import Collection
from enum import IntEnum
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.evaluation import attacks, tradeoff
from helpers.evaluation.leaderboard import ID_COLUMNS, long_rows
from helpers.evaluation.meta.verdict_accuracy import PARTIAL, UNDECIDED
from helpers.evaluation.tradeoff_summary import best_scales
from helpers.io.code_version import REPOSITORY, code_in_use
from helpers.io.hashing import content_hash
from helpers.io.parquet import read_table, write_table
from helpers.methods import METHODS
from helpers.stats.intervals import format_interval

PUBLISHED = REPOSITORY / "benchmarks" / "results" / "facts.parquet"
IDENTITY = ["model_hash", "split", "method", "subject", "target", "seed", "scale"]
"""Columns that tell one measurement from another; its metrics are rows of their own."""
PROVENANCE = ["settings", "commit", "method_code", "evaluation_code"]
COLUMNS = [*dict.fromkeys([*IDENTITY, *ID_COLUMNS]), "metric", "value", *PROVENANCE]
NUMBERS = {"value": np.float32, "scale": np.float32, "seed": np.int16}  # as they are stored
TEXTS = [column for column in COLUMNS if column not in NUMBERS]
DURATION = "measurement_seconds"  # metric: of an edit and its scores, in the process that made them
PARTS = "facts.part-{}-of-{}.parquet"  # files that several machines write beside the table
METHOD_ROOMS = ("methods", "training", "sae")  # rooms of `helpers` whose code makes an edit
EVALUATION_ROOMS = ("evaluation", "stats")


def method_of(label: str) -> str:
    """Return the method of a label: `gated_neuron, low_rank` is a form of `gated_neuron`."""
    return label.partition(", ")[0]


@cache
def method_code(label: str) -> str:
    """Hash the code of a method, and its defaults."""
    used = code_in_use(method_files(label), METHOD_ROOMS)
    return content_hash([used, repr(METHODS[method_of(label)].hparams())])


def method_files(label: str) -> set[Path]:
    """List the files of a method: of its function, and of its hyperparameters.

    A training method's function is made by the recipe that all of them share, and its loss stands
    beside its hyperparameters.
    """
    method = METHODS[method_of(label)]
    modules = {method.function.__module__, method.hparams.__module__}
    return {REPOSITORY.joinpath(*m.split(".")).with_suffix(".py") for m in modules}


@cache
def evaluation_code() -> str:
    """Hash the code of the scores and of all attacks."""
    files = [Path(tradeoff.__file__), *Path(attacks.__file__).parent.glob("*.py")]
    return code_in_use(files, EVALUATION_ROOMS)


def as_published(
    table: pd.DataFrame, label: str, *, split: str, model_hash: str, settings: str, commit: str
) -> pd.DataFrame:
    """Bring a table of `tradeoff` of one method into the rows that are published.

    Args:
        table: From `tradeoff`.
        label: Of the method, or of one of its forms.
        split: `dev`, to choose strengths, or `heldout`.
        model_hash: Of the model.
        settings: The sizes of the evaluation, in words.
        commit: Of the code.

    Returns:
        `COLUMNS`, one row a number.
    """
    about = {"split": split, "model_hash": model_hash, "settings": settings, "commit": commit}
    codes = {"method_code": method_code(label), "evaluation_code": evaluation_code()}
    rows = long_rows(table.assign(method=label))
    return rows.assign(**about, **codes)[COLUMNS]


def published(
    path: str | Path = PUBLISHED, *, model_hash: str | None = None, split: str | None = None
) -> pd.DataFrame:
    """Read the published results; an empty table where there are none.

    Args:
        path: The Parquet file.
        model_hash: Of the model whose rows are read; all models by default.
        split: `dev` or `heldout`; both by default.

    Returns:
        `COLUMNS` and `changed`: whether the method's code has changed since the row was measured.

    Raises:
        UserError: The file is damaged.
    """
    table = read_table(path) if Path(path).exists() else pd.DataFrame(columns=COLUMNS)
    table = table.astype({"value": float, "scale": float} | dict.fromkeys(TEXTS, object))
    if model_hash is not None:
        table = table[table["model_hash"] == model_hash]
    if split is not None:
        table = table[table["split"] == split]
    known = {label: method_of(label) in METHODS for label in table["method"].unique()}
    current = {label: method_code(label) if known[label] else "" for label in known}
    changed = table["method_code"] != table["method"].map(current)
    return table.assign(changed=changed).reset_index(drop=True)


class State(IntEnum):
    """State of a measurement, in the order in which measurements are made."""

    MISSING = 0
    METHOD_CHANGED = 1
    SCORES_CHANGED = 2
    CURRENT = 3


def state_of(rows: pd.DataFrame | None, label: str, scales: Collection[float]) -> State:
    """Tell whether a measurement is there, and made by today's code.

    Args:
        rows: The published rows of the method, fact and seed; None without any.
        label: Of the method.
        scales: Scales of the edit that are wanted. A refusal stands for all of them.
    """
    if rows is None:
        return State.MISSING
    rows = rows[rows["scale"].isin(scales) | (rows["metric"] == "refused")]
    is_refused = (rows["metric"] == "refused").any()
    if not (is_refused or set(scales) <= set(rows["scale"])):
        return State.MISSING
    if (rows["method_code"] != method_code(label)).any():
        return State.METHOD_CHANGED
    if (rows["evaluation_code"] != evaluation_code()).any():
        return State.SCORES_CHANGED
    return State.CURRENT


def with_rows(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Add measurements to the published ones.

    Older rows of the same method, fact and seed are dropped, at whatever scale: the scale of a
    held-out measurement is chosen again as development facts are added.
    """
    if table.empty:
        return rows.reset_index(drop=True)
    keys = [column for column in IDENTITY if column != "scale"]
    new = pd.MultiIndex.from_frame(rows[keys])
    old = table[~pd.MultiIndex.from_frame(table[keys]).isin(new)]
    return pd.concat([old[COLUMNS], rows], ignore_index=True)


def publish(path: str | Path, table: pd.DataFrame) -> None:
    """Write published results, small: repeated texts once, numbers in single precision."""
    types = NUMBERS | dict.fromkeys(TEXTS, "category")
    rows = table[COLUMNS].sort_values([*IDENTITY, "metric"], ignore_index=True)
    write_table(path, rows.astype(types))


def part_of(label: str, fact: str, seed: int, n: int) -> int:
    """Return the part, 1 to n, that a measurement is in, whatever was measured before."""
    return zlib.crc32(f"{label}|{fact}|{seed}".encode()) % n + 1


def take_in_parts(path: str | Path) -> pd.DataFrame:
    """Move the rows of the parts that lie beside published results into them.

    Returns:
        What `published` then reads.

    Raises:
        UserError: A file is damaged; all parts are still there.
    """
    parts = sorted(Path(path).parent.glob(PARTS.format("*", "*")))
    if parts:
        table = published(path)
        for part in parts:
            table = with_rows(table, published(part)[COLUMNS])
        publish(path, table)
        for part in parts:
            part.unlink()
    return published(path)


def chosen_strengths(table: pd.DataFrame) -> dict[str, float]:
    """Choose each method's strength on the published development facts.

    Args:
        table: From `published`.

    Returns:
        Label → scale of the edit with the best mean score.
    """
    dev = table[(table["split"] == "dev") & table["metric"].isin(["score", "refused"])]
    if dev.empty:
        return {}
    keys = [c for c in ID_COLUMNS if c != "target"]
    wide = dev.pivot_table(index=keys, columns="metric", values="value").reset_index()
    return best_scales(wide.reindex(columns=[*keys, "score"]))


def sources(table: pd.DataFrame) -> str:
    """Say in a sentence where published rows come from; "" for none.

    Args:
        table: Rows of `published`.
    """
    if table.empty:
        return ""
    facts = table.groupby("method", observed=True)["subject"].nunique()
    older = sorted(set(table.loc[table["changed"], "method"]))
    has_state = {
        state: set(table.loc[table["metric"] == f"state_{state}", "method"])
        for state in (PARTIAL, UNDECIDED)
    }
    unnamed = sorted(has_state[UNDECIDED] - has_state[PARTIAL])
    rows = "every row" if not has_state[PARTIAL] else f"the rows of {', '.join(unnamed)}"
    both = f" *Undecided* stands for *partial* too in {rows}." if unnamed else ""
    listed = {c: ", ".join(sorted(set(table[c]))) for c in ("settings", "commit")}
    return (
        f"Published results: {facts.min()} to {facts.max()} held-out facts a method (most seeds of "
        f"one: {table['seed'].nunique()}); each evaluation has {listed['settings']}; measured at "
        f"commit {listed['commit']}. Measured with an older version: {', '.join(older) or 'none'}."
        f"{both}"
    )


def beside(own: pd.DataFrame, many: pd.DataFrame) -> pd.DataFrame:
    """Put a run's own leaderboard beside another one, as text.

    Args:
        own: From `leaderboard`, of the run.
        many: From `leaderboard`, of the published results.

    Returns:
        One row a method of the run, in the order of `many`: what the attacks find, forgetting and
        retention, here and there, and the run's verdict.
    """
    place = {method: n for n, method in enumerate(many["method"])}
    rows = own.assign(place=own["method"].map(place)).sort_values("place", kind="stable")
    other = many.set_index("method").reindex(rows["method"])
    text = rows[["method", "family"]].reset_index(drop=True)
    for name, board in (("here", rows), ("published", other)):
        text[f"attacks find, {name}"] = board["attacks find"].fillna("").to_numpy()
    for metric in ("forgetting", "retention"):
        for name, board in (("here", rows), ("published", other)):
            columns = [metric, f"{metric} low", f"{metric} high"]
            intervals = board.reindex(columns=columns).to_numpy(float)
            text[f"{metric}, {name}"] = [format_interval(*ends) for ends in intervals]
    return text.assign(verdict=rows["verdict"].to_numpy())
