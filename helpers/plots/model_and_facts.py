"""Figures of chapter 00: the model's answers, and the facts that it knows."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.io.safe_text import visible
from helpers.plots.base import BLUE, GREY, ORANGE, WIDTH, wrapped


def likeliest_answers(
    prompts: Sequence[str], answers: Sequence[Sequence[tuple[str, float]]]
) -> Figure:
    """Draw a small bar chart of each prompt's likeliest next tokens.

    Args:
        prompts: The prompts.
        answers: Of each prompt (token, probability), likeliest first.
    """
    figure, axes = plt.subplots(1, len(prompts), figsize=(WIDTH, 2.3), sharex=True, squeeze=False)
    for axis, prompt, best in zip(axes[0], prompts, answers, strict=True):
        token_bars(axis, best)
        axis.set(title=wrapped(str(prompt), 34))
    return figure


def token_bars(axis: Axes, tokens: Sequence[tuple[str, float]]) -> None:
    """Draw (token, probability) as bars, the likeliest on top and in blue."""
    names, values = [visible(t) for t, _ in tokens][::-1], [p for _, p in tokens][::-1]
    axis.barh(range(len(names)), values, color=[GREY] * (len(names) - 1) + [BLUE])
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="probability", xlim=(0, 1))
    axis.grid(axis="y", visible=False)


def known_facts(table: pd.DataFrame, subject: str) -> Figure:
    """Draw every fact of a relation by the target's probability, and mark one.

    Args:
        table: `helpers.facts.known_facts`: subject, probability, lowest and highest over prompts,
            known.
        subject: Subject of the marked fact.
    """
    table = table.sort_values("probability", ascending=False).reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(WIDTH, 2.8))
    for known, colour, name in ((True, BLUE, "known"), (False, GREY, "not known")):
        part = table[table["known"] == known]
        axis.vlines(part.index, part["lowest"], part["highest"], color=colour, alpha=0.25)
        axis.plot(part.index, part["probability"], ".", color=colour, ms=4, label=name)
    marked = table[table["subject"] == subject]
    for rank, row in marked.iterrows():
        axis.plot(rank, row["probability"], "o", color=ORANGE, ms=7, label=subject)
    axis.set(xlabel="facts, likeliest first", ylabel="P(target)", ylim=(0, 1))
    axis.legend()
    return figure
