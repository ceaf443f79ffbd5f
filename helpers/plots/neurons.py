"""Figures of chapter 01: selective neurons, and the tokens that their columns promote."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.plots.base import BLUE, GREY, ORANGE, WIDTH, log_scale


def selectivity_by_layer(observed: np.ndarray, permuted: np.ndarray, *, threshold: float) -> Figure:
    """Draw how many neurons of each layer are selective for the subject, against chance.

    Args:
        observed: Area under the ROC curve of each neuron, (layers, d_mlp).
        permuted: The same with another subject's prompts in the subject's place,
            (repetitions, layers, d_mlp).
        threshold: AUROC from which a neuron counts as selective.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    layers = np.arange(len(observed))
    axis.bar(layers, (observed >= threshold).sum(1), color=BLUE, label="the subject")
    chance = (permuted >= threshold).sum(2)
    axis.plot(layers, np.median(chance, 0), color=ORANGE, label="another subject (median)")
    axis.fill_between(layers, chance.min(0), chance.max(0), color=ORANGE, alpha=0.2, lw=0)
    axis.set(xlabel="layer", ylabel=f"neurons with AUROC ≥ {threshold:g}")
    axis.legend()
    return figure


def activations_of_neurons(
    positives: np.ndarray, negatives: np.ndarray, names: Sequence[str], subject: str
) -> Figure:
    """Draw activations of a few neurons on one subject and on all others.

    Args:
        positives: (prompts about the subject, neurons).
        negatives: (prompts about others, neurons).
        names: The neurons' names.
        subject: The subject's name.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    jitter = np.random.default_rng(0)
    for i in range(len(names)):
        for values, colour, z in ((negatives, GREY, 1), (positives, ORANGE, 2)):
            x = i + jitter.uniform(-0.22, 0.22, len(values))
            axis.plot(x, values[:, i], ".", color=colour, ms=4, alpha=0.6, zorder=z)
    axis.plot([], [], "o", color=ORANGE, label=subject)
    axis.plot([], [], "o", color=GREY, label="other subjects")
    axis.set_xticks(range(len(names)), names, rotation=20)
    axis.set(ylabel="activation")
    axis.legend()
    return figure


def ranks_by_layer(table: pd.DataFrame) -> Figure:
    """Draw the target's best rank in groups of value columns, layer by layer.

    Args:
        table: One row per layer and group: layer, group, rank.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    groups = table["group"].unique()
    for group, colour in zip(groups, (BLUE, GREY, ORANGE), strict=False):
        part = table[table["group"] == group]
        axis.plot(part["layer"], part["rank"] + 1, "o-", color=colour, ms=3, label=group)
    axis.set(xlabel="layer", ylabel="best rank of the target")
    log_scale(axis, "y")
    axis.invert_yaxis()
    axis.legend()
    return figure
