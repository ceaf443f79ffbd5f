"""The four small pictures of the landing page, one a step of the story; chapters save them."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.plots.base import BLUE, GREEN, GREY, ORANGE, wrapped
from helpers.plots.model_and_facts import token_bars

SIZE = (3.6, 2.5)  # inches: half of the book's column, so that type stays legible on a phone


def answer(prompt: str, tokens: Sequence[tuple[str, float]]) -> Figure:
    """Draw a prompt's likeliest next tokens, the likeliest in blue.

    Args:
        prompt: The prompt.
        tokens: (token, probability), likeliest first.
    """
    figure, axis = plt.subplots(figsize=SIZE)
    token_bars(axis, tokens)
    axis.set(title=wrapped(prompt, 38))
    return figure


def hand_over(average: pd.DataFrame) -> Figure:
    """Draw how much of the answer the residual stream moves, at the subject and at the last token.

    Args:
        average: Means over facts: site, position (`subject` or `last`), layer, value, low, high.
    """
    figure, axis = plt.subplots(figsize=SIZE)
    named = {"subject": ("at the subject", ORANGE), "last": ("at the last token", BLUE)}
    for position, (label, colour) in named.items():
        chosen = (average["site"] == "residual") & (average["position"] == position)
        part = average[chosen].sort_values("layer")
        axis.plot(part["layer"], part["value"], color=colour, lw=2, label=label)
        axis.fill_between(part["layer"], part["low"], part["high"], color=colour, alpha=0.2, lw=0)
    axis.set(xlabel="residual stream after layer", ylabel="share of the answer moved")
    axis.legend(loc="center left")
    return figure


def balance(board: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draw forgetting against retention of a few methods, named; best is top right.

    Args:
        board: One row a method: method, forgetting, retention.
        methods: Which to draw; those that the board lacks are left out.
    """
    rows = board.set_index("method").reindex(methods)[["forgetting", "retention"]].dropna()
    figure, axis = plt.subplots(figsize=SIZE)
    axis.plot(rows["forgetting"], rows["retention"], "o", color=BLUE, ms=5)
    # Names stand at the right, in the order of their points, so that none covers another.
    order = rows["retention"].rank(method="first", ascending=False).to_numpy()
    for (name, row), rank in zip(rows.iterrows(), order, strict=True):
        axis.annotate(
            str(name),
            row.to_numpy(float),
            xytext=(1.06, 1 - rank / (len(rows) + 1)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6},
        )
    axis.set(xlabel="forgetting", ylabel="retention", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    return figure


def under_attack(same_fact: pd.DataFrame, *, named: str, original: str, level: float) -> Figure:
    """Draw P(target) of each edit as asked by name, and under what brings most of it back.

    Args:
        same_fact: From `helpers.evaluation.same_fact.same_fact`: edit, condition, p.
        named: The condition that asks by name.
        original: The name of the model before any edit.
        level: P(answer) of the subject's other associations; infinite if there are none.
    """
    table = same_fact.pivot(index="edit", columns="condition", values="p")
    edits = [original, *(edit for edit in dict.fromkeys(same_fact["edit"]) if edit != original)]
    asked = table[named].reindex(edits).to_numpy(float)
    back = table.drop(columns=named).max(axis=1).reindex(edits).to_numpy(float)
    y = np.arange(len(edits))
    figure, axis = plt.subplots(figsize=SIZE)
    axis.hlines(y, np.fmin(asked, back), np.fmax(asked, back), color=GREY, lw=1)
    axis.plot(asked, y, "o", color=GREEN, ms=6, label="by name")
    axis.plot(back, y, "s", color=ORANGE, ms=5, label="worst attack")
    if np.isfinite(level):
        axis.axvline(level, color="black", lw=0.8, ls=":")
    axis.set_yticks(y, edits)
    axis.invert_yaxis()
    axis.set(xlabel="P(target)", xlim=(-0.02, 1.02))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, 1.18), ncols=2, borderpad=0)
    return figure
