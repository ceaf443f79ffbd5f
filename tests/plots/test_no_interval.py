"""Figures of means without an interval, of too few facts: the means are drawn, nothing breaks."""

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers.plots import deletion, edits, evaluate, organism, propagation, sae, verify

VALUES = (0.25, 0.75)


def rows(**columns) -> pd.DataFrame:
    """Two means without an interval, with those columns of two values each."""
    return pd.DataFrame(columns | {"low": np.nan, "high": np.nan})


def of_scorecard() -> Figure:
    table = rows(metric=["own", "neighbours"], before=[0.9, np.nan], value=VALUES)
    change = {"metric": "change_neighbours", "value": 0.25}
    return evaluate.scorecard(pd.concat([table, pd.DataFrame([change])]))


FIGURES = {
    "scorecard": of_scorecard,
    "aucs": lambda: evaluate.aucs(
        rows(metric=["a", "a"], state=["hidden", "present"], value=VALUES)
    ),
    "methods": lambda: edits.methods_on_metrics(
        {"metric": rows(method=["a", "b"], family="surgery", value=VALUES)}, order=["a", "b"]
    ),
    "propagation": lambda: propagation.effects_by_layer(
        {"title": rows(layer=[0, 1], site="mlp", value=VALUES)}
    ),
    "unexplained": lambda: sae.unexplained(rows(name="a", numbers=[8, 16], fvu=VALUES)),
    "detectors": lambda: sae.detectors(rows(kind=["a", "latents"], metric="F1", value=VALUES)),
    "candidates": lambda: sae.by_candidates(rows(kind="a", candidates=[8, 16], value=VALUES)),
    "steps": lambda: sae.means_by_step(
        rows(k=[1, 2], name="a", value=VALUES), x="k", lines=["a"], xlabel="k"
    ),
    "effects": lambda: sae.effects(rows(layer=[0, 1], name="a", value=VALUES)),
    "deletion": lambda: deletion.deletion_curve(
        rows(method="a", metric="b", n_neurons=[1, 2], value=VALUES)
    ),
    "widths": lambda: organism.width_sweep(
        rows(facts_per_neuron=[1, 2], measure="a", value=VALUES)
    ),
    "recovery": lambda: verify.recovery_ratios(
        {"edited": rows(attack=["a", "b"], recovery=VALUES)}, gone=0.1, hidden=0.5
    ),
}


def drawn_values(figure: Figure) -> set[float]:
    """Collect the coordinates of all markers and heights of all bars."""
    lines = [line.get_xydata() for axis in figure.axes for line in axis.lines]
    dots = [c.get_offsets().data for axis in figure.axes for c in axis.collections]
    bars = [bar.get_height() for axis in figure.axes for bar in axis.patches if axis.containers]
    return {float(x) for part in (*lines, *dots, bars) for x in np.ravel(part)}


@pytest.mark.parametrize("name", FIGURES)
def test_means_without_an_interval_are_drawn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of all-NaN data
        figure = FIGURES[name]()
        figure.canvas.draw()
    assert set(VALUES) <= drawn_values(figure)
    for axis in figure.axes:
        assert np.isfinite([*axis.get_xlim(), *axis.get_ylim()]).all()


def test_the_scorecard_shows_shares_that_are_kept_and_no_changes():
    labels = [label.get_text() for label in of_scorecard().axes[1].get_yticklabels()]
    assert labels == ["neighbours"]
