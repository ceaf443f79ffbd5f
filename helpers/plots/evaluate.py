"""Figures of chapter 08: a scorecard, and the meta-evaluation of metrics."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.evaluation.eval_prompts import RETAINED
from helpers.plots.base import BLUE, GREEN, GREY, ORANGE, WIDTH, log_scale

COLOURS = {"present": GREY, "hidden": BLUE, "absent": GREEN}
MARKERS = {"present": "D", "hidden": "^", "absent": "s"}
FORGET_METRICS = ("own", "paraphrases", "worst_paraphrase", "greedy", "reverse")


def scorecard(table: pd.DataFrame) -> Figure:
    """Draw forgetting and retention: before and after the edit with intervals.

    Args:
        table: `Scorecard.table()`: metric, before, value, low, high.
    """
    table = table.set_index("metric")
    forget = table.loc[[m for m in FORGET_METRICS if m in table.index]]
    names = [name for group in RETAINED for name in (group, f"worst_{group}")]
    retained = [name for name in names if name in table.index]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.9 + 0.26 * max(len(forget), len(retained))))
    for axis, part in zip(axes, (forget, table.loc[retained]), strict=True):
        y = np.arange(len(part))
        axis.hlines(y, part["low"], part["high"], color=ORANGE, lw=1.5)
        axis.plot(part["value"], y, "o", color=ORANGE, ms=5, label="after the edit")
        axis.set_yticks(y, [m.replace("_", " ") for m in part.index])
        axis.set_ylim(len(part) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
    axes[0].plot(forget["before"], range(len(forget)), "D", color=GREY, ms=5, label="before")
    axes[0].set(xlabel="probability or share", xlim=(-0.03, 1.03), title="gone?")
    axes[1].axvline(1, color=GREY, lw=1)
    axes[1].set(xlabel="P(answer) after / before", title="still there?")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0.2, 1), ncols=2, fontsize=8)
    return figure


def states(table: pd.DataFrame, metrics: list[str]) -> Figure:
    """Draw every fact's value: a panel a metric, a row of points a state.

    Args:
        table: From `evaluate_states`: state, and a column a metric.
        metrics: The columns.
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
        if name.endswith("P(target)"):  # probabilities after an edit differ by powers of ten
            log_scale(axis, "x")
        axis.grid(axis="y", visible=False)
    axes[0][0].invert_yaxis()
    for axis in list(axes.flat)[len(metrics) :]:
        axis.set_visible(False)
    return figure


def aucs(table: pd.DataFrame) -> Figure:
    """Draw how well each metric separates present and hidden facts from controls.

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
    axis.set(xlabel="AUROC against absent facts (0.5: can't tell)", xlim=(-0.02, 1.03))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure
