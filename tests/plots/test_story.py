"""The pictures of the landing page: what each says follows from its data."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from helpers.plots import story


def same_fact(**scores):
    rows = [
        (edit, condition, p)
        for edit, ps in scores.items()
        for condition, p in zip(("named", "described", "int4"), ps, strict=True)
    ]
    return pd.DataFrame(rows, columns=["edit", "condition", "p"])


@pytest.mark.parametrize(
    "level, n_lines",
    [(0.02, 1), (float("inf"), 0)],
    ids=["with other associations", "without any"],
)
def test_each_edit_is_drawn_by_name_and_under_what_brings_most_back(level, n_lines):
    table = same_fact(rome=(0.03, 0.31, 0.06), original=(0.5, 0.4, 0.55))
    figure = story.under_attack(table, named="named", original="original", level=level)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["original", "rome"]
    points = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert points["by name"] == [0.5, 0.03]
    assert points["worst attack"] == [0.55, 0.31]
    vertical = [line for line in axis.lines if len(set(line.get_xdata())) == 1]
    assert len(vertical) == n_lines


def test_only_methods_that_were_measured_are_named():
    board = pd.DataFrame(
        [["rome", 0.9, 0.8], ["neurons", np.nan, np.nan], ["memit", 1.0, 0.7]],
        columns=["method", "forgetting", "retention"],
    )
    figure = story.balance(board, ["memit", "neurons", "npo", "rome"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["memit", "rome"]


def test_names_do_not_cover_each_other_where_points_do():
    board = pd.DataFrame(
        [[f"method {i}", 1.0, 0.9] for i in range(6)],
        columns=["method", "forgetting", "retention"],
    )
    figure = story.balance(board, list(board["method"]))
    figure.draw_without_rendering()
    # An annotation's own extent has its line too: of the text alone.
    boxes = sorted((Text.get_window_extent(t) for t in figure.axes[0].texts), key=lambda b: b.y0)
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))


def test_the_path_is_of_the_residual_stream_at_both_tokens():
    layers = pd.DataFrame({"layer": [1, 0, 2], "low": 0.0, "high": 1.0})
    average = pd.concat(
        layers.assign(site=site, position=position, value=value)
        for site, position, value in (
            ("residual", "subject", [0.6, 0.9, 0.1]),
            ("residual", "last", [0.3, 0.0, 0.8]),
            ("mlp", "subject", [5.0, 5.0, 5.0]),
        )
    )
    lines = {line.get_label(): line for line in story.hand_over(average).axes[0].lines}
    assert list(lines["at the subject"].get_ydata()) == [0.9, 0.6, 0.1]
    assert list(lines["at the last token"].get_ydata()) == [0.0, 0.3, 0.8]
    assert len(lines) == 2


def test_a_token_of_white_space_can_be_seen():
    figure = story.answer("The capital of France is", [(" Paris", 0.7), ("\n", 0.1)])
    assert all(t.get_text().strip() for t in figure.axes[0].get_yticklabels())
