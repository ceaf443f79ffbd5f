"""Figures of the chapter on evaluation: a scorecard, and what each metric can tell apart."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.plots import BLUE, GREEN, GREY, ORANGE, WIDTH, log_scale

COLOURS = {"present": GREY, "hidden": BLUE, "absent": GREEN}
MARKERS = {"present": "D", "hidden": "^", "absent": "s"}
SAID = ("own", "paraphrases", "worst_paraphrase", "greedy", "reverse")


def scorecard(table: pd.DataFrame) -> Figure:
    """What is gone and what stayed: before and after with intervals.

    Args:
        table: `Scorecard.table()`: metric, before, value, low, high.
    """
    table = table.set_index("metric")
    gone = table.loc[[m for m in SAID if m in table.index]]
    kept = [m for m in table.index if "neighbours" in m or "same_" in m or "must_stay" in m]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.9 + 0.26 * max(len(gone), len(kept))))
    for axis, part in zip(axes, (gone, table.loc[kept]), strict=True):
        y = np.arange(len(part))
        axis.hlines(y, part["low"], part["high"], color=ORANGE, lw=1.5)
        axis.plot(part["value"], y, "o", color=ORANGE, ms=5, label="after the edit")
        axis.set_yticks(y, [m.replace("_", " ") for m in part.index])
        axis.set_ylim(len(part) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
    axes[0].plot(gone["before"], range(len(gone)), "D", color=GREY, ms=5, label="before")
    axes[0].set(xlabel="probability or share", xlim=(-0.03, 1.03), title="gone?")
    axes[1].axvline(1, color=GREY, lw=1)
    axes[1].set(xlabel="P(answer) after / before", title="still there?")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0.2, 1), ncols=2, fontsize=8)
    return figure


def states(table: pd.DataFrame, metrics: list[str]) -> Figure:
    """A panel a metric, a row of points a state: the reading of every fact.

    Args:
        table: From `calibrate`: state, and a column a metric.
        metrics: Which columns.
    """
    columns = 3
    lines = -(-len(metrics) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(WIDTH, 1.25 * lines), squeeze=False, sharey=True
    )
    jitter = np.random.default_rng(0)
    for axis, name in zip(axes.flat, metrics, strict=False):
        for row, (state, colour) in enumerate(COLOURS.items()):
            x = table[table["state"] == state][name].dropna()
            y = row + jitter.uniform(-0.2, 0.2, len(x))
            axis.plot(x, y, MARKERS[state], color=colour, ms=3.5, alpha=0.7)
        axis.set_yticks(range(len(COLOURS)), list(COLOURS))
        axis.set_title(name, fontsize=9)
        if name.endswith("P(target)"):  # what is left is small, and yet not the same
            log_scale(axis, "x")
        axis.grid(axis="y", visible=False)
    axes[0][0].invert_yaxis()
    for axis in list(axes.flat)[len(metrics) :]:
        axis.set_visible(False)
    return figure


def aucs(table: pd.DataFrame) -> Figure:
    """How well each metric tells present and hidden from absent, with intervals.

    Args:
        table: From `metric_aucs`: metric, state, value, low, high.
    """
    hidden = table[table["state"] == "hidden"].sort_values("value", kind="stable")
    names = list(hidden["metric"])
    figure, axis = plt.subplots(figsize=(WIDTH, 0.8 + 0.27 * len(names)))
    axis.axvline(0.5, color="black", lw=0.6)
    for state, shift in (("present", 0.15), ("hidden", -0.15)):
        part = table[table["state"] == state].set_index("metric").loc[names]
        y = np.arange(len(names)) + shift
        axis.hlines(y, part["low"], part["high"], color=COLOURS[state], lw=1.5)
        axis.plot(part["value"], y, MARKERS[state], color=COLOURS[state], ms=5, label=state)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="AUC against facts that were never known (0.5: can't tell)", xlim=(-0.02, 1.03))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure
