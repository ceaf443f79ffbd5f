"""Figures of the chapters on entities, topics and capabilities."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.plots.base import CYCLE, GREY, MARKERS, ORANGE, WIDTH, log_scale, wrapped

MIN_PROBABILITY = 1e-5  # smaller ones are drawn here: a log axis has no zero
MAX_CHANGE = 0.5  # relative changes of a loss beyond it have the same colour


def facts_under_methods(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw P(target) of each fact of a request, before and after each method.

    Args:
        tables: Method → `FactsScorecard.facts`, the same facts in the same order.
    """
    first = next(iter(tables.values()))
    y = np.arange(len(first))
    figure, axis = plt.subplots(figsize=(WIDTH, 1.1 + 0.32 * len(first)))
    axis.scatter(_drawn(first["before"]), y, marker="o", s=46, fc="none", ec=GREY, label="before")
    offsets = np.linspace(-0.25, 0.25, len(tables)) if len(tables) > 1 else [0.0]
    for n, ((name, table), offset) in enumerate(zip(tables.items(), offsets, strict=True)):
        colour, marker = CYCLE[n % len(CYCLE)], MARKERS[n % len(MARKERS)]
        axis.scatter(_drawn(table["after"]), y + offset, marker=marker, s=22, c=colour, label=name)
    level = _drawn(first["associated"])
    axis.scatter(level, y, marker="|", s=160, c="black", lw=1.2, label="associated controls")
    # Of one subject the relation tells facts apart, of one relation the subject.
    about = first["relation"] if first["subject"].nunique() == 1 else first["subject"]
    labels = [f"{x} → {target}" for x, target in zip(about, first["target"], strict=True)]
    axis.set_yticks(y, [wrapped(label, 34) for label in labels])
    axis.set(xlabel="P(target) on held-out prompts", ylim=(len(first) - 0.4, -0.6))
    log_scale(axis, "x")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _drawn(probability: pd.Series) -> pd.Series:
    return probability.clip(lower=MIN_PROBABILITY)


def forgetting_against_change(table: pd.DataFrame, *, allowed: float) -> Figure:
    """Draw what methods forget of a text against what they cost the text that must stay.

    Args:
        table: One row a method: method, forgotten (share of the way to the floor), low, high,
            worst_change (largest relative change of a loss that must stay), control (a flag).
        allowed: The change that counts as none; drawn as a line.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    for n, row in enumerate(table.itertuples()):
        colour = GREY if row.control else CYCLE[n % len(CYCLE)]
        marker = MARKERS[n % len(MARKERS)]
        low, high = (0 if np.isnan(x) else abs(row.forgotten - x) for x in (row.low, row.high))
        axis.errorbar(
            row.worst_change,
            row.forgotten,
            yerr=[[low], [high]],
            fmt=marker,
            color=colour,
            ms=6,
            label=row.method,
        )
    axis.axvline(allowed, color=ORANGE, ls="--", lw=1)
    axis.axhline(1, color="black", ls=":", lw=1)
    axis.set(
        xlabel="largest change of a loss that must stay",
        ylabel="forgotten (100 %: the floor)",
    )
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def skill_matrix(table: pd.DataFrame) -> Figure:
    """Draw how each removal (a row) changes the loss on each text (a column), as shares.

    Args:
        table: Rows and columns named; NaN where it was not measured.
    """
    values = table.to_numpy(float)
    figure, axis = plt.subplots(figsize=(WIDTH, 1.3 + 0.4 * len(table)))
    image = axis.imshow(values, cmap="RdBu_r", vmin=-MAX_CHANGE, vmax=MAX_CHANGE, aspect="auto")
    axis.set_xticks(range(table.shape[1]), [wrapped(c, 12) for c in table.columns], rotation=45)
    axis.set_yticks(range(len(table)), table.index)
    axis.grid(False)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * MAX_CHANGE else "black"
            shown = f"{value:+.0%}" if abs(value) >= 0.005 else "0"
            axis.text(column, row, shown, ha="center", va="center", color=colour, fontsize=7)
    axis.set(xlabel="text", ylabel="removed")
    figure.colorbar(image, ax=axis, label="relative change of loss", shrink=0.9)
    return figure


def relearning_curves(table: pd.DataFrame) -> Figure:
    """Draw what fine-tuning gives back: gain in nats a token over the steps.

    Args:
        table: Result of `helpers.evaluation.text_attacks.text_attacks`.
    """
    labels = {
        ("edited", "relearning_forgotten"): "edited model, text of what it lost",
        ("edited", "relearning_unrelated"): "edited model, unrelated text",
        ("control", "relearning_forgotten"): "original, a language it never learned",
    }
    figure, axis = plt.subplots(figsize=(WIDTH, 2.8))
    for n, ((state, attack), label) in enumerate(labels.items()):
        is_shown = (table["state"] == state) & (table["attack"] == attack)
        rows = table[is_shown].sort_values("steps")
        if len(rows):
            x, y = [0, *rows["steps"]], [0.0, *rows["gain"]]
            axis.plot(x, y, marker=MARKERS[n], color=CYCLE[n], label=label)
    axis.axhline(0, color="black", lw=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="steps of fine-tuning", ylabel="fall of the loss (nats a token)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
