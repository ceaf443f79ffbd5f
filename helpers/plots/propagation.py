"""Figures of chapter 02: logit lens, activation patching, and means by layer."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.plots.base import BLUE, GREY, ORANGE, SITE_COLOURS, SITE_NAMES, WIDTH, log_scale


def logit_lens(table: pd.DataFrame) -> Figure:
    """Draw probability and rank of the answer after every layer, one thin line a prompt.

    Args:
        table: `helpers.tracing.logit_lens`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    for _, part in table.groupby("prompt"):
        left.plot(part["layer"], part["probability"], color=BLUE, alpha=0.3, lw=1)
        right.plot(part["layer"], part["rank"] + 1, color=BLUE, alpha=0.3, lw=1)
    mean = table.groupby("layer")["probability"].mean()
    left.plot(mean.index, mean, color=ORANGE, lw=2, label="mean over prompts")
    median = table.groupby("layer")["rank"].median() + 1
    right.plot(median.index, median, color=ORANGE, lw=2, label="median over prompts")
    label_lens(left, right)
    left.legend()
    right.legend()
    return figure


def label_lens(left: Axes, right: Axes) -> None:
    """Label the axes of the logit lens: probability left, rank right, the first rank on top."""
    left.set(xlabel="after layer", ylabel="P(answer's first token)", ylim=(0, 1))
    right.set(xlabel="after layer", ylabel="rank of the answer")
    log_scale(right, "y")
    right.invert_yaxis()


def patching_map(table: pd.DataFrame) -> Figure:
    """Draw the patching effect of each state: layers upwards, tokens across, a panel a site.

    Args:
        table: `helpers.tracing.activation_patching`.
    """
    sites = list(table["site"].unique())
    figure, axes = plt.subplots(1, len(sites), figsize=(WIDTH, 4.4), sharey=True)
    for axis, site in zip(np.atleast_1d(axes), sites, strict=True):
        part = table[table["site"] == site]
        grid = part.pivot(index="layer", columns="position", values="patching_effect")
        grid = grid[sorted(grid.columns, key=int)]
        image = axis.imshow(
            grid, origin="lower", aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="none"
        )
        labels = part.drop_duplicates("position").set_index("position")["tokens"]
        axis.set_xticks(
            range(grid.shape[1]), [labels[c].strip() or "␣" for c in grid.columns], rotation=45
        )
        axis.set(title=SITE_NAMES.get(site, site))
        axis.grid(visible=False)
    np.atleast_1d(axes)[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="share of the answer moved", shrink=0.8)
    return figure


def heads_map(table: pd.DataFrame) -> Figure:
    """Draw the patching effect of each attention head at the last token.

    Args:
        table: One row per layer and head: layer, head, patching_effect.
    """
    grid = table.pivot(index="head", columns="layer", values="patching_effect")
    figure, axis = plt.subplots(figsize=(WIDTH, 2.4))
    image = axis.imshow(grid, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="none")
    axis.set(xlabel="layer", ylabel="head")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="share moved")
    return figure


def effects_by_layer(
    groups: dict[str, pd.DataFrame], *, ylabel: str = "share of the answer moved"
) -> Figure:
    """Draw means over facts with their intervals, layer by layer, a panel a group.

    Args:
        groups: Panel title → table with layer, site, value, low, high.
        ylabel: Label of the mean.
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(WIDTH, 2.8), sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes[0], groups.items(), strict=True):
        for site, part in table.groupby("site", sort=False):
            colour = SITE_COLOURS.get(site, GREY)
            axis.plot(
                part["layer"],
                part["value"],
                "o-",
                ms=3,
                color=colour,
                label=SITE_NAMES.get(site, site),
            )
            axis.fill_between(
                part["layer"], part["low"], part["high"], color=colour, alpha=0.2, lw=0
            )
        axis.axhline(0, color="black", lw=0.6)
        axis.set(title=title, xlabel="layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel(ylabel)
    axes[0][0].legend()
    return figure
