"""Figures of chapter 06: edits of the MLPs; and of the trade-off in chapters 07 and 10."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.io.safe_text import visible
from helpers.plots.base import BLUE, CYCLE, DASHES, GREY, MARKERS, ORANGE, WIDTH, wrapped


def written_shares(groups: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw how much of its value an edit writes in each context: a panel an edit, a row a group.

    Args:
        groups: Panel → group of contexts → shares; 1 is the whole value.
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(WIDTH, 2.4), sharey=True, squeeze=False)
    jitter = np.random.default_rng(0)
    for axis, (title, rows) in zip(axes[0], groups.items(), strict=True):
        for y, (name, colour) in enumerate(zip(rows, (ORANGE, BLUE, GREY), strict=False)):
            shares = rows[name]
            height = y + jitter.uniform(-0.3, 0.3, len(shares))
            axis.plot(shares, height, ".", color=colour, ms=3, alpha=0.5)
        axis.axvline(1, color="black", lw=0.6)
        axis.set(title=title, xlabel="share of the value that is written")
        axis.set_yticks(range(len(rows)), list(rows))
        axis.grid(axis="y", visible=False)
    axes[0][0].invert_yaxis()
    return figure


def before_and_after(
    titles: Sequence[str],
    before: Sequence[Sequence[tuple[str, float]]],
    after: Sequence[Mapping[str, float]],
) -> Figure:
    """Draw each prompt's likeliest next tokens, before and after an edit.

    Args:
        titles: Titles of the prompts.
        before: For each prompt (token, probability), likeliest first, over the tokens shown.
        after: For each prompt token → probability after the edit.
    """
    n = len(titles)
    figure, axes = plt.subplots(1, n, figsize=(WIDTH, 2.9), sharex=True, squeeze=False)
    for axis, title, old, new in zip(axes[0], titles, before, after, strict=True):
        names = [t for t, _ in old]
        y = np.arange(len(names))
        axis.barh(y - 0.2, [p for _, p in old], 0.38, color=GREY, label="before")
        axis.barh(y + 0.2, [new[t] for t in names], 0.38, color=ORANGE, label="after")
        axis.set_yticks(y, [visible(t) for t in names])
        axis.invert_yaxis()
        axis.set(title=wrapped(str(title), 25), xlabel="probability", xlim=(0, 1))
        axis.grid(axis="y", visible=False)
    axes[0][-1].legend(loc="lower right")
    return figure


def same_fact(table: pd.DataFrame, *, level: float) -> Figure:
    """Draw P(target) of one fact under each edit: a row a condition, a marker an edit.

    Args:
        table: From `helpers.evaluation.same_fact.same_fact`.
        level: P(answer) of the subject's other associations; infinite if there are none.
    """
    conditions, edits = list(dict.fromkeys(table["condition"])), list(dict.fromkeys(table["edit"]))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.5 * len(conditions) + 1.4))
    for k, edit in enumerate(edits):
        rows = table[table["edit"] == edit].set_index("condition").reindex(conditions)
        y = np.arange(len(conditions)) + 0.12 * (k - (len(edits) - 1) / 2)
        colour = GREY if k == 0 else CYCLE[(k - 1) % len(CYCLE)]
        axis.hlines(y, rows["p"], rows["worst"], color=colour, lw=1)
        axis.plot(rows["p"], y, MARKERS[k % len(MARKERS)], color=colour, ms=5, label=edit)
    if np.isfinite(level):
        axis.axvline(level, color="black", lw=0.8, ls=":", label="other associations")
    axis.set_yticks(range(len(conditions)), conditions)
    axis.invert_yaxis()
    axis.set(xlabel="P(target): mean over prompts, line to the worst prompt", xlim=(-0.02, 1.02))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    return figure


def tradeoff_curves(table: pd.DataFrame) -> Figure:
    """Draw forgetting against collateral: a line a method, a point a scale; best is bottom right.

    Args:
        table: One row a method and scale: method, family, scale, forgetting, retention (means
            over facts).
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.4))
    axis.plot(0, 0, "*", color="black", ms=11, zorder=4, label="original model")
    for k, (name, part) in enumerate(table.groupby("method", sort=False)):
        part = part.sort_values("scale")
        control = (part["family"] == "control").all()
        axis.plot(
            [0, *part["forgetting"]],
            [0, *(1 - part["retention"])],
            linestyle=DASHES[k // len(CYCLE) % len(DASHES)],
            marker="x" if control else MARKERS[k // len(CYCLE) % len(MARKERS)],
            color=GREY if control else CYCLE[k % len(CYCLE)],
            ms=4,
            lw=1.2,
            label=name,
        )
    label_tradeoff(axis)
    return figure


def label_tradeoff(axis: Axes) -> None:
    """Label the axes of forgetting against collateral, with the methods at the right."""
    axis.set(
        xlabel="forgetting",
        ylabel="collateral: 1 − retention",
        xlim=(-0.03, 1.03),
    )
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def methods_on_metrics(panels: Mapping[str, pd.DataFrame], *, order: Sequence[str]) -> Figure:
    """Draw every method's mean with its interval, a panel a metric, controls in grey.

    Args:
        panels: Metric → table with method, family, value, low, high.
        order: Methods from top to bottom.
    """
    height = 0.9 + 0.2 * len(order)
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, height), sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes[0], panels.items(), strict=True):
        rows = table.set_index("method").reindex(order)
        for y, (_, row) in enumerate(rows.iterrows()):
            if np.isfinite(row["value"]):
                colour = GREY if row["family"] == "control" else BLUE
                axis.plot([row["low"], row["high"]], [y, y], color=colour, lw=2, alpha=0.4)
                axis.plot(row["value"], y, "o", color=colour, ms=4)
        # Beside each other, titles of one line would run into the next panel's.
        axis.set(title=title if len(panels) < 4 else title.replace(" ", "\n", 1))
        axis.set_yticks(range(len(order)), order)
    axes[0][0].invert_yaxis()
    return figure
