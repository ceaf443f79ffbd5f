"""Figures of chapters 04 and 05: sparse autoencoders."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.plots.base import BLUE, DASHES, GREEN, GREY, ORANGE, PINK, WIDTH, log_scale

COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)


def training_curves(metrics: dict[str, pd.DataFrame]) -> Figure:
    """Draw unexplained variance and dead latents while SAEs are trained.

    Args:
        metrics: Name → lines of metrics: step, mse, dead.
    """
    height = 2.6 + 0.2 * (len(metrics) // 2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, height), layout="constrained")
    styles = [(dash, colour) for dash in DASHES for colour in COLOURS]
    for (name, lines), (dash, colour) in zip(metrics.items(), styles * 9, strict=False):
        left.plot(lines["step"], lines["mse"], dash, color=colour, label=name)
        right.plot(lines["step"], 100 * lines["dead"], dash, color=colour)
    left.set(xlabel="step", ylabel="unexplained variance", ylim=(0, 1))
    right.set(xlabel="step", ylabel="dead latents, %")
    right.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def unexplained(table: pd.DataFrame) -> Figure:
    """Draw unexplained variance against the numbers a vector is written with.

    Args:
        table: name (an SAE or a baseline), numbers, fvu, low, high (NaN without an interval).
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.0))
    for (name, part), colour in zip(table.groupby("name", sort=False), COLOURS * 9, strict=False):
        part = part.sort_values("numbers")
        error = np.abs(part[["low", "high"]].sub(part["fvu"], axis=0)).fillna(0).to_numpy().T
        axis.errorbar(part["numbers"], part["fvu"], error, fmt="o-", ms=4, color=colour, label=name)
    axis.set(xlabel="numbers a vector is written with", ylabel="unexplained variance")
    axis.set(ylim=(0, 1))
    log_scale(axis, "x")
    axis.set_xticks(ticks := sorted(table["numbers"].unique()), [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.legend()
    return figure


def feature_density(density: np.ndarray, *, n: int) -> Figure:
    """Draw the distribution of feature densities on a logarithmic scale.

    Args:
        density: Fraction of the vectors on which each latent is active.
        n: Number of vectors; latents active on none are drawn at the left edge.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.4))
    floor = 0.5 / n
    edges = np.geomspace(floor, 1, 50)
    axis.hist(np.clip(density, floor, 1), edges, color=BLUE)
    axis.set(xlabel="share of tokens on which a latent is active", ylabel="latents")
    log_scale(axis, "x")
    return figure


def detectors(table: pd.DataFrame) -> Figure:
    """Draw how well the best unit of each kind detects a concept: means with intervals.

    Args:
        table: kind, metric, value, low, high; a panel a metric.
    """
    metrics = list(table["metric"].unique())
    figure, axes = plt.subplots(1, len(metrics), figsize=(WIDTH, 2.6), sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = table[table["metric"] == metric].iloc[::-1].reset_index(drop=True)
        error = [part["value"] - part["low"], part["high"] - part["value"]]
        axis.errorbar(part["value"], part.index, xerr=error, fmt="none", color=GREY)
        colours = [ORANGE if "latent" in kind else BLUE for kind in part["kind"]]
        axis.scatter(part["value"], part.index, c=colours, zorder=3)
        axis.set_yticks(part.index, part["kind"])
        axis.set(title=metric)
    return figure


def each_concept(table: pd.DataFrame, *, marked: str, x: str, y: str) -> Figure:
    """Draw one point a concept: the best unit of one kind against that of another.

    Args:
        table: concept and the two columns.
        marked: The marked concept.
        x: Column of the one kind, which is also its label.
        y: Column of the other.
    """
    figure, axis = plt.subplots(figsize=(3.6, 3.4))
    axis.plot([0, 1], [0, 1], color=GREY, lw=1)
    axis.plot(table[x], table[y], "o", ms=4, color=BLUE, alpha=0.6)
    marked_row = table[table["concept"] == marked]
    axis.plot(marked_row[x], marked_row[y], "o", ms=7, color=ORANGE, label=marked)
    axis.set(xlabel=f"F1 of the best {x}", ylabel=f"F1 of the best {y}")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.legend(loc="lower right")
    return figure


def by_candidates(table: pd.DataFrame) -> Figure:
    """Draw F1 of the best of ever more candidates, for each kind of unit.

    Args:
        table: kind, candidates, value, low, high.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.0))
    for (kind, part), colour in zip(table.groupby("kind", sort=False), COLOURS * 9, strict=False):
        axis.plot(part["candidates"], part["value"], "o-", ms=3, color=colour, label=kind)
        axis.fill_between(
            part["candidates"], part["low"], part["high"], color=colour, alpha=0.15, lw=0
        )
    axis.set(xlabel="candidates to choose among", ylabel="held-out F1", ylim=(0, 1))
    log_scale(axis, "x")
    axis.legend()
    return figure


def means_by_step(table: pd.DataFrame, *, x: str, lines: Sequence[str], xlabel: str) -> Figure:
    """Draw means with intervals of several quantities against one.

    Args:
        table: `x`, and name, value, low, high.
        x: Column on the x axis.
        lines: Names in the order of the legend.
        xlabel: Its label.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    for name, colour in zip(lines, COLOURS * 9, strict=False):
        part = table[table["name"] == name]
        axis.plot(part[x], part["value"], "o-", ms=4, color=colour, label=name)
        axis.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
    axis.set_xticks(sorted(table[x].unique()))
    axis.set(xlabel=xlabel, ylim=(0, None))
    axis.legend()
    return figure


def effects(table: pd.DataFrame, *, unit: str = "nats") -> Figure:
    """Draw the effects of latents at the subject on the answer, layer by layer.

    Args:
        table: layer, name, value, low, high; bars side by side.
        unit: Unit of the values.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    layers, names = list(table["layer"].unique()), list(table["name"].unique())
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        part = table[table["name"] == name].set_index("layer").reindex(layers)
        at = np.arange(len(layers)) + (i - (len(names) - 1) / 2) * width
        error = np.abs(part[["low", "high"]].sub(part["value"], axis=0)).fillna(0).to_numpy().T
        axis.bar(at, part["value"], width, yerr=error, color=colour, label=name, ecolor=GREY)
    axis.axhline(0, color="black", lw=0.6)
    axis.set_xticks(range(len(layers)), layers)
    axis.set(xlabel="layer", ylabel=f"change of log P(answer), {unit}")
    axis.legend()
    return figure
