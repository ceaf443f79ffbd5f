"""Figures of chapter 09: the axis of an attack's budget."""

import matplotlib.pyplot as plt
import pandas as pd

from helpers.plots.verify import curves


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
    plt.close(figure)
