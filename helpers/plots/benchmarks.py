"""Figures of the chapter on benchmarks."""

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
    n_methods = 0
    for name, values in ratios.items():
        ordered = np.sort(values)
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        width = 2.2
        if name in REFERENCES:
            colour, dash = REFERENCES[name]
        else:
            colour, width = CYCLE[n_methods % len(CYCLE)], 1.4
            dash = DASHES[n_methods % len(DASHES)]
            n_methods += 1
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
    n_methods = 0
    methods = [model for model in models if model not in REFERENCES]
    spread = np.linspace(-0.2, 0.2, len(methods)) if len(methods) > 1 else [0.0]
    offsets = dict(zip(methods, spread, strict=False))
    for model in models:
        rows = table[table["model"] == model]
        y = np.array([attacks.index(attack) for attack in rows["attack"]])
        if model in REFERENCES:
            style = {"marker": "|", "s": 320, "lw": 2, "color": REFERENCES[model][0]}
        else:
            style = {"marker": MARKERS[n_methods % len(MARKERS)], "s": 34}
            style["color"] = CYCLE[n_methods % len(CYCLE)]
            n_methods += 1
            y = y + offsets[model]
        axis.scatter(rows["probability"], y, label=model, zorder=3, **style)
    axis.set_yticks(range(len(attacks)), [wrapped(name, 24) for name in attacks])
    axis.set(
        xlabel="P(answer) a token, mean over the questions to forget",
        ylim=(len(attacks) - 0.5, -0.5),
        xlim=(-0.02, 1.02),
    )
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=0.7)
    return figure
