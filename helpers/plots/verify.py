"""Figures of chapters 09 and 10: verification, and the leaderboard."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from helpers.plots.base import BLUE, CYCLE, GREEN, GREY, ORANGE, PINK, WIDTH, log_scale

COLOURS = {
    "original": GREY,
    "control": GREEN,
    "associated": PINK,
    "edited": ORANGE,
    "hidden": BLUE,
}
FINDING_COLOURS = {
    "absent": GREEN,
    "undecided": BLUE,
    "partial": CYCLE[4],
    "found": ORANGE,
    "intervention": PINK,
    "not attacked": "black",
    "control": GREY,
}
MARKERS = {"original": "D", "control": "s", "associated": "v", "edited": "o", "hidden": "^"}


def scores(table: pd.DataFrame, *, xlabel: str) -> Figure:
    """Draw mean scores with their range over prompts: a row an attack, a point a model.

    Args:
        table: One row a prompt: attack, who, score.
        xlabel: Label of the score.
    """
    names = list(dict.fromkeys(table["attack"]))
    whos = [w for w in COLOURS if w in set(table["who"])]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.7 + 0.42 * len(names)))
    for k, who in enumerate(whos):
        part = table[table["who"] == who].groupby("attack")["score"]
        mean, low, high = part.mean(), part.min(), part.max()
        y = np.array([names.index(n) for n in mean.index]) + 0.16 * (k - (len(whos) - 1) / 2)
        axis.hlines(y, low, high, color=COLOURS[who], lw=1, alpha=0.5)
        axis.plot(mean, y, MARKERS[who], color=COLOURS[who], ms=5, label=who)
    axis.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axis.invert_yaxis()
    axis.set(xlabel=xlabel, xlim=(-0.02, 1.02))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def curves(table: pd.DataFrame, budgets: Mapping[str, str], *, ylabels: Sequence[str]) -> Figure:
    """Draw each model's mean score over the attack's budget, a panel an attack.

    Learning rates are on a logarithmic axis.

    Args:
        table: One row a prompt and budget: attack, who, budget, score.
        budgets: Attack → label of its budget.
        ylabels: Label of each panel.
    """
    names = [n for n in budgets if n in set(table["attack"])]
    columns = min(3, max(1, len(names)))
    lines = max(1, -(-len(names) // columns))
    figure, axes = plt.subplots(
        lines, columns, figsize=(WIDTH, 2.5 * lines), squeeze=False, sharey=len(set(ylabels)) == 1
    )
    for axis, name, ylabel in zip(axes.flat, names, ylabels, strict=False):
        part = table[table["attack"] == name]
        for who in (w for w in COLOURS if w in set(part["who"])):
            mean = part[part["who"] == who].groupby("budget")["score"].mean()
            x = np.arange(len(mean)) if budgets[name].endswith("ablated") else mean.index
            style = "-" if len(mean) > 12 else f"-{MARKERS[who]}"
            axis.plot(x, mean, style, color=COLOURS[who], ms=4, label=who)
        if budgets[name].endswith("ablated"):
            ticks = sorted(part["budget"].unique())
            axis.set_xticks(range(len(ticks)), [f"{t:g}" for t in ticks])
        if budgets[name] == "learning rate":
            log_scale(axis, "x")
        axis.set(title=name.replace("_", " "), xlabel=budgets[name], ylim=(-0.03, 1.03))
        axis.set_ylabel(ylabel)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_visible(False)
    if names:
        axes[0][0].legend(fontsize=8)
    else:
        figure.text(0.5, 0.5, "none of these attacks applies here", ha="center")
    return figure


def recovery_ratios(tables: Mapping[str, pd.DataFrame], *, gone: float, hidden: float) -> Figure:
    """Draw the recovery ratio of each attack, with its interval and the equivalence bounds.

    Args:
        tables: Who → `Verdict.attacks`.
        gone: Bound below which an attack recovers nothing.
        hidden: Ratio from which the fact counts as hidden.
    """
    names = list(dict.fromkeys(n for t in tables.values() for n in t["attack"]))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.7 + 0.3 * len(names)))
    axis.axvspan(-gone, gone, color=GREEN, alpha=0.15, lw=0)
    axis.axvline(hidden, color=PINK, lw=1, ls="--")
    for k, (who, table) in enumerate(tables.items()):
        part = table.dropna(subset=["recovery"])
        y = np.array([names.index(n) for n in part["attack"]]) + 0.22 * (k - (len(tables) - 1) / 2)
        axis.hlines(y, part["low"], part["high"], color=COLOURS[who], lw=1.5)
        axis.plot(part["recovery"], y, MARKERS[who], color=COLOURS[who], ms=5, label=who)
    axis.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set(xlabel="recovery ratio (0: as control facts, 1: as the original)")
    axis.grid(axis="y", visible=False)
    axis.legend()
    return figure


def who_sees_what(table: pd.DataFrame) -> Figure:
    """Draw how much each attack recovers from each known-hidden model, as a table of colours.

    A frame marks what an attack is shown to see.

    Args:
        table: attack, hiding, recovery (NaN where nothing could be tried), seen; one fact or the
            mean over several.
    """
    wide = table.pivot_table(index="attack", columns="hiding", values="recovery", dropna=False)
    seen = table.pivot_table(index="attack", columns="hiding", values="seen")
    order = wide.fillna(0).max(axis=1).sort_values(ascending=False, kind="stable").index
    names = list(dict.fromkeys(table["hiding"]))
    wide, seen = wide.reindex(order, columns=names), seen.reindex(order, columns=names)
    figure, axis = plt.subplots(figsize=(WIDTH, 1 + 0.27 * len(order)))
    grid = wide.clip(0, 1).to_numpy(float) if len(order) else np.full((1, 1), np.nan)
    image = axis.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(wide.to_numpy()):
        text = "–" if np.isnan(value) else f"{round(value, 2) + 0.0:.0%}"  # no -0%
        colour = "white" if value > 0.6 else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        if seen.iat[row, column] >= 0.5:
            frame = Rectangle(
                (column - 0.48, row - 0.46), 0.96, 0.92, fill=False, ec=ORANGE, lw=1.5
            )
            axis.add_patch(frame)
    if table.empty:
        axis.text(0.5, 0.5, "no model hides the fact", ha="center", transform=axis.transAxes)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(order)), [n.replace("_", " ") for n in order])
    axis.xaxis.tick_top()
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="recovery ratio", shrink=0.5)
    return figure


def front(board: pd.DataFrame) -> Figure:
    """Draw every method by forgetting and retention, coloured by what the attacks find.

    Methods on the Pareto front are ringed; controls are grey crosses.

    Args:
        board: One row a method: method, family, forgetting, retention, finding, front.
    """
    board = board.dropna(subset=["forgetting", "retention"])
    kinds = board["finding"].where(board["family"] != "control", "control")
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    for kind in (k for k in FINDING_COLOURS if (kinds == k).any()):
        x, y = board.loc[kinds == kind, ["forgetting", "retention"]].to_numpy(float).T
        marker = "x" if kind == "control" else "o"
        axis.plot(x, y, marker, color=FINDING_COLOURS[kind], ms=5, lw=0, label=kind)
    best = board[board["front"]]
    axis.plot(
        best["forgetting"], best["retention"], "o", mec="black", mfc="none", ms=9, label="front"
    )
    axis.set(
        xlabel="forgetting: 1 at the level of controls",
        ylabel="retention of the worst group",
        xlim=(-0.05, 1.05),
        ylim=(None, 1.1),
    )
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    _name_points(axis, board.assign(colour=kinds.map(FINDING_COLOURS)))
    return figure


def _name_points(axis: Axes, points: pd.DataFrame) -> None:
    """Write each method's name where it covers least of the points and names so far."""
    figure = axis.figure
    figure.draw_without_rendering()  # places the axes
    at = axis.transData.transform(points[["forgetting", "retention"]])
    occupied = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in at]
    for row in points.sort_values("forgetting", ascending=False).itertuples():
        candidates = []
        for up in (4, -9, 12, -17, 20, -25):
            for side, dx in (("left", 4), ("right", -4)):
                name = axis.annotate(
                    row.method,
                    (row.forgetting, row.retention),
                    xytext=(dx, up),
                    textcoords="offset points",
                    ha=side,
                    fontsize=7,
                    color=row.colour,
                )
                box = name.get_window_extent()
                outside = not (axis.bbox.x0 < box.x0 and box.x1 < axis.bbox.x1 + 20)
                overlaps = [Bbox.intersection(box, other) for other in occupied]
                covered = sum(b.width * b.height for b in overlaps if b is not None)
                candidates.append((covered + 1e4 * outside, len(candidates), name, box))
        _, _, best, box = min(candidates, key=lambda x: x[:2])
        occupied.append(box)
        for _, _, name, _ in candidates:
            if name is not best:
                name.remove()
