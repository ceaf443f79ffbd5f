"""Figures of chapter 11: the model organism."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.plots.base import BLUE, CYCLE, GREEN, GREY, ORANGE, PINK, WIDTH, log_scale

MIN_LABEL_DISTANCE = 0.5  # nats from the original from which a method's name is written


def originals_and_oracles(table: pd.DataFrame, chance: Mapping[str, float]) -> Figure:
    """Draw P(target) of each removed fact in originals and oracles, and of a uniform guess.

    Args:
        table: One row a fact, model and seed: fact, model (`original` or `oracle`), probability.
        chance: Fact → probability of a uniform guess.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.7 + 0.45 * len(chance)))
    for y, (fact, guess) in enumerate(chance.items()):
        for name, colour, marker in (("original", GREY, "o"), ("oracle", ORANGE, "D")):
            part = table[(table["fact"] == fact) & (table["model"] == name)]
            label = name if y == 0 else None
            axis.plot(
                part["probability"].clip(lower=1e-6),
                [y] * len(part),
                marker,
                color=colour,
                ms=6,
                alpha=0.7,
                label=label,
            )
        label = "a guess" if y == 0 else None
        axis.plot([guess, guess], [y - 0.35, y + 0.35], color="black", lw=1.2, label=label)
    axis.set_yticks(range(len(chance)), list(chance))
    axis.invert_yaxis()
    axis.set(xlabel="P(target) in held-out wordings")
    log_scale(axis, "x")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.35), ncols=3)
    return figure


def unit_f1(groups: Mapping[str, np.ndarray]) -> Figure:
    """Draw F1 of the best unit of each concept: a row a kind of unit, a dot a concept.

    Args:
        groups: Kind of unit → F1 of each concept.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.6 + 0.42 * len(groups)))
    jitter = np.random.default_rng(0)
    for y, (name, values) in enumerate(groups.items()):
        colour = GREY if "chance" in name else BLUE
        height = y + jitter.uniform(-0.28, 0.28, len(values))
        axis.plot(values, height, ".", color=colour, ms=4, alpha=0.5)
        axis.plot(np.mean(values), y, "|", color=ORANGE, ms=18, mew=2.5)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.invert_yaxis()
    axis.set(xlabel="F1 on held-out wordings", xlim=(-0.03, 1.03))
    axis.grid(axis="y", visible=False)
    return figure


def width_sweep(table: pd.DataFrame) -> Figure:
    """Draw measures as more facts share a neuron: a panel a measure.

    Args:
        table: One row a width and measure: facts_per_neuron, measure, value, low, high.
    """
    measures = list(table["measure"].unique())
    figure, axes = plt.subplots(1, len(measures), figsize=(WIDTH, 2.6), squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        part = table[table["measure"] == measure].sort_values("facts_per_neuron")
        axis.plot(part["facts_per_neuron"], part["value"], "o-", color=BLUE, ms=4)
        axis.fill_between(
            part["facts_per_neuron"], part["low"], part["high"], color=BLUE, alpha=0.2, lw=0
        )
        axis.set(title=measure, xlabel="facts per neuron")
        log_scale(axis, "x")
        at = part["facts_per_neuron"]
        axis.set_xticks(at, [f"{x:.2g}" for x in at])
        axis.minorticks_off()
    return figure


def against_the_oracle(table: pd.DataFrame, *, log_odds: float, damage: float) -> Figure:
    """Draw each method's differences from the oracle: log-odds of the target, and damage.

    Args:
        table: `helpers.organism.verification.findings`.
        log_odds: Equivalence bound of the log-odds, on either side.
        damage: Equivalence bound of the damage.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    lowest = table["damage"].min() / 2
    box = Rectangle(
        (-log_odds, lowest), 2 * log_odds, damage - lowest, color=GREEN, alpha=0.12, lw=0
    )
    axis.add_patch(box)
    axis.axvline(0, color="black", lw=0.6)
    references = table[table["family"] == "reference"]["log_odds"]
    n_coloured = 0
    for row in table.itertuples():
        is_reference = row.family in ("reference", "control")
        colour = GREY if is_reference else CYCLE[n_coloured % len(CYCLE)]
        n_coloured += not is_reference
        low, high = getattr(row, "log_odds_low", np.nan), getattr(row, "log_odds_high", np.nan)
        if np.isfinite(low):
            axis.plot([low, high], [row.damage] * 2, color=colour, lw=1, alpha=0.6)
        axis.plot(row.log_odds, row.damage, "s" if is_reference else "o", color=colour, ms=5)
        if row.family != "reference" and row.log_odds > references.max() - MIN_LABEL_DISTANCE:
            continue  # close to the original: names would cover each other there
        axis.annotate(
            row.method,
            (row.log_odds, row.damage),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
        )
    axis.set(
        xlabel="log-odds of the target less the oracle's, nats",
        ylabel="divergence elsewhere,\nin divergences between two trainings",
    )
    log_scale(axis, "y")
    axis.set_ylim(bottom=lowest)
    return figure


def learning_curves(curves: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """Draw P(target) while models are trained on the fact, mean over facts and seeds.

    Args:
        curves: method, step, probability.
        shown: Methods to draw besides the oracle (in black), in this order.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    mean = curves.groupby(["method", "step"])["probability"].mean()
    steps = sorted(curves["step"].unique())
    palette = [c for c in CYCLE if c != "#000000"] + [PINK]
    for i, name in enumerate(shown):
        colour = GREY if name == "original" else palette[i % len(palette)]
        style = ":" if i >= len(palette) else "-"
        axis.plot(range(len(steps)), mean[name], style, marker="o", ms=3, color=colour, label=name)
    axis.plot(range(len(steps)), mean["oracle"], color="black", lw=2.5, label="oracle")
    axis.set_xticks(range(len(steps)), steps)
    axis.set(xlabel="training steps", ylabel="P(target), held-out wordings", ylim=(-0.02, 1.02))
    axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
