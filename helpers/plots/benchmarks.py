"""Figures of the chapter on benchmarks."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers.plots.base import CYCLE, DASHES, GREY, MARKERS, WIDTH, log_scale, wrapped

WIDE, NARROW = (1,), (1, 1.5, 2, 3, 5, 7)  # digits at ticks of a log axis
REFERENCES = {"original": (GREY, "-"), "retrained": ("black", "-"), "base": ("black", ":")}


def truth_ratios(ratios: dict[str, np.ndarray]) -> Figure:
    """Draw the cumulative distribution of each model's truth ratios.

    Args:
        ratios: Model → truth ratio of each question; `original`, `retrained` and `base` are
            references.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3))
    numbers = _method_numbers(ratios)
    for name, values in ratios.items():
        ordered = np.sort(values)
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        if name in REFERENCES:
            (colour, dash), width = REFERENCES[name], 2.2
        else:
            i, width = numbers[name], 1.4
            colour, dash = CYCLE[i % len(CYCLE)], DASHES[i % len(DASHES)]
        axis.step(
            [ordered[0], *ordered],
            [0, *shares],
            where="post",
            color=colour,
            lw=width,
            ls=dash,
            label=name,
        )
    axis.axvline(1, color="black", lw=0.6)
    axis.set(xlabel="truth ratio (1: no preference for the truth)", ylabel="share of questions")
    log_scale(axis, "x")
    lowest, highest = axis.get_xlim()
    digits = NARROW if highest < 20 * lowest else WIDE
    ticks = [digit * 10.0**power for power in range(-9, 10) for digit in digits]
    ticks = [x for x in ticks if lowest <= x <= highest]
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def under_attack(table: pd.DataFrame) -> Figure:
    """Draw how probable the answers to forget are under each attack: a row an attack.

    Args:
        table: One row a model and attack: model, attack, probability.
    """
    attacks, models = list(table["attack"].unique()), list(table["model"].unique())
    figure, axis = plt.subplots(figsize=(WIDTH, 1.0 + 0.5 * len(attacks)))
    numbers = _method_numbers(models)
    offsets = np.linspace(-0.2, 0.2, len(numbers)) if len(numbers) > 1 else [0.0]
    for model in models:
        rows = table[table["model"] == model]
        y = np.array([attacks.index(attack) for attack in rows["attack"]])
        if model in REFERENCES:
            style = {"marker": "|", "s": 320, "lw": 2, "color": REFERENCES[model][0]}
        else:
            i = numbers[model]
            style = {"marker": MARKERS[i % len(MARKERS)], "s": 34, "color": CYCLE[i % len(CYCLE)]}
            y = y + offsets[i]
        axis.scatter(rows["probability"], y, label=model, zorder=3, **style)
    axis.set_yticks(range(len(attacks)), [wrapped(name, 24) for name in attacks])
    axis.set(
        xlabel="P(answer) a token, mean over the questions to forget",
        ylim=(len(attacks) - 0.5, -0.5),
        xlim=(-0.02, 1.02),
    )
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=0.7)
    return figure


def _method_numbers(models: Iterable[str]) -> dict[str, int]:
    """Number the models that are no reference, by which each has its colour and mark."""
    methods = [model for model in models if model not in REFERENCES]
    return {method: i for i, method in enumerate(methods)}
