"""Figures of chapter 07: training and inference-time unlearning."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.plots.base import BLUE, CYCLE, DASHES, GREY, MARKERS, WIDTH
from helpers.plots.edits import label_tradeoff
from helpers.plots.propagation import label_lens


def change_by_layer(tables: Mapping[str, pd.DataFrame], n_layers: int) -> Figure:
    """Draw the size of a change: a panel a method, a row a matrix, a column a layer.

    Args:
        tables: Method → one row a matrix: layer, matrix, relative (norm of the change / norm of the
            matrix).
        n_layers: Layers of the model.
    """
    names = list(dict.fromkeys(m for t in tables.values() for m in t["matrix"]))
    n = len(tables)
    height = 0.7 + n * (0.35 + 0.22 * len(names))
    figure, axes = plt.subplots(n, 1, figsize=(WIDTH, height), sharex=True, squeeze=False)
    largest = max(t["relative"].max() for t in tables.values())
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        grid = np.full((len(names), n_layers), np.nan)
        for row in table.itertuples():
            grid[names.index(row.matrix), row.layer] = row.relative
        image = axis.imshow(grid, aspect="auto", cmap="viridis_r", vmin=0, vmax=largest)
        axis.set(title=title)
        axis.set_yticks(range(len(names)), names)
        axis.grid(visible=False)
    axes[-1, 0].set(xlabel="layer")
    figure.colorbar(image, ax=axes[:, 0], label="norm of the change / of the matrix")
    return figure


def lens_before_and_after(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the answer layer by layer: mean probability and median rank, a line a model.

    Args:
        tables: Name → `helpers.tracing.logit_lens`; the first is the original.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8))
    for k, (name, table) in enumerate(tables.items()):
        colour = "black" if k == 0 else CYCLE[(k - 1) % len(CYCLE)]
        style = {"color": colour, "lw": 1.6, "ls": "-" if k == 0 else DASHES[k % len(DASHES)]}
        mean = table.groupby("layer")["probability"].mean()
        median = table.groupby("layer")["rank"].median() + 1
        left.plot(mean.index, mean, label=name, **style)
        right.plot(median.index, median, **style)
    label_lens(left, right)
    left.legend()
    return figure


def search_curve(runs: pd.DataFrame) -> Figure:
    """Draw forgetting against collateral for every run of a hyperparameter search.

    The selected runs are filled.

    Args:
        runs: One row a method and setting: method, forgetting, retention, chosen (whether it is).
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    axis.plot(0, 0, "*", color="black", ms=11, zorder=4, label="original model")
    for k, (name, part) in enumerate(runs.groupby("method", sort=False)):
        marker = MARKERS[k // len(CYCLE) % len(MARKERS)]
        colour = CYCLE[k % len(CYCLE)]
        for is_chosen, face in ((False, "none"), (True, colour)):
            points = part[part["chosen"] == is_chosen]
            label = name if is_chosen else None
            x, y = points["forgetting"], 1 - points["retention"]
            axis.plot(x, y, marker, mec=colour, mfc=face, ms=6, lw=0, label=label)
    label_tradeoff(axis)
    return figure


def likelihoods(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> Figure:
    """Draw P(target) of each prompt before and after, a panel a method.

    Args:
        before: Method → probability of each prompt in the original model.
        after: The same under the method.
    """
    n = len(after)
    figure, axes = plt.subplots(1, n, figsize=(WIDTH, 2.4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], after, strict=True):
        for a, b in zip(before[name], after[name], strict=True):
            axis.plot([0, 1], [a, b], "o-", color=BLUE, ms=3, lw=0.8, alpha=0.6)
        axis.axhline(0, color=GREY, lw=0.6)
        axis.set(title=name, xlim=(-0.3, 1.3), ylim=(-0.03, 1.03))
        axis.set_xticks([0, 1], ["before", "after"])
    axes[0][0].set(ylabel="P(target)")
    return figure
