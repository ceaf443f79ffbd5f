"""Figures of chapter 09: the axis of an attack's budget."""

import numpy as np
import pandas as pd

from helpers.plots.verify import curves, who_sees_what


def test_learning_rates_are_on_a_logarithmic_axis_and_steps_are_not():
    rows = [
        (attack, who, budget, score)
        for attack, budgets in (("relearning_forgotten", (1e-5, 1e-4, 5e-4)), ("gcg", (0, 5)))
        for who in ("edited", "control")
        for budget, score in zip(budgets, (0.1, 0.2, 0.3), strict=False)
    ]
    table = pd.DataFrame(rows, columns=["attack", "who", "budget", "score"])
    budgets = {"relearning_forgotten": "learning rate", "gcg": "search rounds"}
    figure = curves(table, budgets, ylabels=["P(target)"] * 2)
    scales = [axis.get_xscale() for axis in figure.axes]
    assert scales[:2] == ["log", "linear"]


def test_attacks_that_do_not_apply_are_said_in_words():
    table = pd.DataFrame(columns=["attack", "who", "budget", "score"])
    figure = curves(table, {"gcg": "search rounds"}, ylabels=["P(target)"])
    assert [text.get_text() for text in figure.texts] == ["none of these attacks applies here"]
    assert not any(axis.get_visible() for axis in figure.axes)


def test_what_is_seen_is_framed_and_what_was_not_tried_is_a_dash():
    rows = [
        ("stitching", "output", 0.99, True), ("stitching", "refusal", 0.1, False),
        ("described", "output", np.nan, False), ("described", "refusal", 0.7, True),
        ("hints", "output", -0.001, False), ("hints", "refusal", 0.02, False),
    ]  # fmt: skip
    columns = ["attack", "hiding", "recovery", "seen"]
    axis = who_sees_what(pd.DataFrame(rows, columns=columns)).axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["stitching", "described", "hints"]  # what recovers most stands first
    assert [text.get_text() for text in axis.texts] == ["99%", "10%", "–", "70%", "0%", "2%"]
    assert len(axis.patches) == 2
    empty = who_sees_what(pd.DataFrame(columns=columns)).axes[0]
    assert [text.get_text() for text in empty.texts] == ["no model hides the fact"]
