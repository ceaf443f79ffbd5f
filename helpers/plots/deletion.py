"""Figures of chapter 03: forgetting and collateral as neurons are deleted."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from helpers.plots.base import GREY, ORANGE, WIDTH, log_scale


def deletion_curve(table: pd.DataFrame) -> Figure:
    """Draw forgetting and collateral as more neurons are deleted, against random neurons.

    Args:
        table: One row per method, number of neurons and metric: method, n_neurons, metric, value,
            low, high. Values are P after / before.
    """
    metrics = list(table["metric"].unique())
    figure, axes = plt.subplots(1, len(metrics), figsize=(WIDTH, 2.9), sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = table[table["metric"] == metric]
        for (name, rows), colour in zip(
            part.groupby("method", sort=False), (ORANGE, GREY), strict=False
        ):
            axis.plot(rows["n_neurons"], rows["value"], "o-", ms=3, color=colour, label=name)
            axis.fill_between(
                rows["n_neurons"], rows["low"], rows["high"], color=colour, alpha=0.2, lw=0
            )
        axis.set(title=metric, xlabel="deleted neurons")
        log_scale(axis, "x")
    axes[0][0].set(ylabel="share left", ylim=(-0.03, 1.25))
    axes[0][0].legend()
    return figure
