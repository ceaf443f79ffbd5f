"""Schematics of ideas: pictures without results, labelled by a run's subject and target."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Wedge

from helpers.plots.base import BLUE, GREEN, GREY, ORANGE
from helpers.plots.drawing import (
    INK,
    PALE,
    WHITE,
    Point,
    arrow,
    box,
    canvas,
    cells,
    crossed_out,
    named_box,
    shortened,
    stripes,
    symbol,
    vector,
    words,
)

PALE_BLUE, PALE_ORANGE = "#A9CDE3", "#F3C6A5"
CARD = {"facecolor": WHITE, "edgecolor": "none", "pad": 1.5}  # behind words on a picture


def mlp_as_memory(subject: str, target: str) -> Figure:
    """Draw an MLP as a memory: a row of W_in detects, a column of W_out writes."""
    figure, axis = canvas(2.3)
    low, height, middle, top = 0.72, 1.2, 1.32, 2.12
    one = 2  # the neuron that fires
    vector(axis, (0.22, low), height, [0.6, 0.2, 0.8, 0.4, 0.1, 0.7], GREY)
    words(axis, (0.02, top), shortened(subject, 0.7), ha="left", weight="bold")
    arrow(axis, (0.48, middle), (0.74, middle))
    # The gate's matrix lies behind: the same row of it belongs to the same neuron.
    for shift, colour in ((0.16, PALE_ORANGE), (0.0, ORANGE)):
        stripes(axis, (0.8 + shift, low + shift / 2), (0.85, height), 8, {one: colour})
    symbol(axis, (1.4, top), r"W_\mathrm{in},\ W_\mathrm{gate}")
    words(axis, (1.2, 0.34), f"row: a key,\ndetects {shortened(subject, 0.6)}")
    arrow(axis, (1.87, middle), (2.13, middle))
    vector(axis, (2.2, low), height, [0, 0, 1, 0, 0, 0.12, 0, 0], GREEN)
    symbol(axis, (2.3, top), "h")
    words(axis, (2.3, 0.43), "fires")
    arrow(axis, (2.46, middle), (2.72, middle))
    stripes(axis, (2.78, low), (1.1, height), 8, {one: BLUE}, upright=True)
    symbol(axis, (3.33, top), r"W_\mathrm{out}")
    words(axis, (3.4, 0.34), f"column: a value,\nwrites {shortened(target, 0.9)}")
    arrow(axis, (3.94, middle), (4.2, middle))
    vector(axis, (4.27, low), height, [0.2, 0.9, 0.3, 0.7, 0.5, 0.1], BLUE)
    words(axis, (4.58, top), shortened(target, 0.55), ha="right", weight="bold")
    return figure


def activation_patching(subject: str, target: str, other: str, other_target: str) -> Figure:
    """Draw two runs, a state that is copied from one into the other, and the scale of its effect.

    Args:
        subject: Subject of the clean prompt.
        target: Its answer.
        other: Subject of the corrupted prompt.
        other_target: Its answer.
    """
    figure, axis = canvas(3.25)
    left, right = (0.45, 1.0, 1.65), (2.95, 3.5, 4.15)  # tokens: before, subject, last
    layers = (1.12, 1.49, 1.86, 2.23)
    copied = 1  # layer of the copied state
    runs = (("clean run", left, subject, BLUE), ("corrupted run", right, other, ORANGE))
    for name, tokens, who, colour in runs:
        words(axis, (tokens[1], 3.12), name, weight="bold")
        for x, label in zip(tokens, ("…", shortened(who, 0.7), "last"), strict=True):
            words(axis, (x, 0.84), label)
        for y in layers:
            for x in tokens:  # before the subject both runs are the same
                _state(axis, (x, y), PALE if x == tokens[0] else colour)
        arrow(axis, (tokens[2], layers[-1] + 0.15), (tokens[2], 2.62))
    words(axis, (left[2], 2.76), shortened(target, 1.0))
    question = f"{shortened(other_target, 0.7)} or {shortened(target, 0.7)}?"
    words(axis, (4.58, 2.76), question, ha="right")
    for y in layers[copied + 1 :]:  # states above read the copied one too
        for x in right[1:]:
            _state(axis, (x, y), BLUE, ORANGE)
    _state(axis, (right[1], layers[copied]), BLUE)
    start, end = (left[1], layers[copied]), (right[1] - 0.14, layers[copied])
    arrow(axis, start, end, lw=2.5, mutation_scale=18, zorder=0.5)
    words(axis, (2.3, layers[copied] + 0.16), "copy", weight="bold")
    arrow(axis, (1.3, 0.4), (3.22, 0.4))
    for x in (1.3, 3.26):
        axis.plot([x, x], [0.33, 0.47], color=INK, lw=1.5)
    words(axis, (1.22, 0.4), f"0: {shortened(other_target, 0.9)}", ha="right")
    words(axis, (3.34, 0.4), f"1: {shortened(target, 0.9)}", ha="left")
    words(axis, (2.3, 0.15), "share of the answer that moves")
    return figure


def _state(axis: Axes, at: Point, colour: str, second: str | None = None) -> None:
    """Draw a state as a disc, in two colours if it is a mixture."""
    axis.add_patch(Circle(at, 0.13, facecolor=colour, edgecolor=INK, lw=0.8))
    if second:
        axis.add_patch(Wedge(at, 0.13, -90, 90, facecolor=second, edgecolor=INK, lw=0.8))


def rank_one_update(subject: str, target: str) -> Figure:
    """Draw ROME's update: a value times the subject's isolated key, added to W_out."""
    figure, axis = canvas(2.75)
    v = np.array([0.25, 0.9, 0.5, 0.15, 0.7])
    key = np.array([0.1, 0.8, 0.05, 0.3, 0.1, 1.0, 0.1, 0.2])
    low, height, width = 0.95, 1.1, 1.45
    stripes(axis, (0.15, low), (width, height), len(key), {}, upright=True)
    symbol(axis, (0.15 + width / 2, 2.25), r"W_\mathrm{out}")
    words(axis, (1.95, low + height / 2), "+", fontsize=20)
    vector(axis, (2.4, low), height, list(v), BLUE)
    symbol(axis, (2.5, 2.25), "v")
    cells(axis, (2.8, 2.15), (width, 0.2), [list(key)], ORANGE)
    symbol(axis, (2.8 + width / 2, 2.55), r"(C^{-1}k)^\top")
    cells(axis, (2.8, low), (width, height), np.outer(v, key).tolist(), GREEN)
    own = f"key of {shortened(subject)}:\nwrites v, less {shortened(target, 0.8)}"
    named_box(axis, (1.2, 0.4), own, width=2.05, height=0.52, edge=ORANGE)
    text = "keys of text:\nchanged the least"
    named_box(axis, (3.45, 0.4), text, width=1.85, height=0.52)
    return figure


def appended_neuron(subject: str, target: str) -> Figure:
    """Draw a gated unit: two rows and two columns beside matrices that stay as they are."""
    figure, axis = canvas(3.1)
    low, height, added, gap = 1.5, 1.1, 0.3, 0.07
    middle, top = low + height / 2, 2.85
    stripes(axis, (0.35, low), (0.95, height), 8, {})
    stripes(axis, (0.35, low - gap - added), (0.95, added), 2, {0: ORANGE, 1: ORANGE})
    symbol(axis, (0.82, top), r"W_\mathrm{in}")
    words(axis, (0.82, 0.83), f"rows: the key\nof {shortened(subject, 1.0)}")
    arrow(axis, (1.38, middle), (1.82, middle))
    vector(axis, (1.92, low), height, [0.1, 0, 0.4, 0, 0.1, 0, 0.2, 0], GREY)
    vector(axis, (1.92, low - gap - added), added, [1, 0.45], GREEN)
    symbol(axis, (2.02, top), "h")
    arrow(axis, (2.22, middle), (2.66, middle))
    stripes(axis, (2.76, low), (1.15, height), 8, {}, upright=True)
    columns = {0: BLUE, 1: PALE_BLUE}  # the second one takes off what the first has too much
    stripes(axis, (3.91 + gap, low), (0.34, height), 2, columns, upright=True)
    symbol(axis, (3.3, top), r"W_\mathrm{out}")
    words(axis, (3.8, 1.22), f"columns:\nless {shortened(target, 0.9)}")
    for x in (0.82, 3.33):
        words(axis, (x, middle), "unchanged", bbox=CARD)
    _response(axis, (1.75, 0.27))
    return figure


def _response(axis: Axes, origin: Point) -> None:
    """Draw the activation of a gated unit: silent, growing above a threshold, then constant."""
    x, y = origin
    arrow(axis, (x, y), (x + 1.6, y), lw=1, mutation_scale=8)
    curve = np.array([(0, 0), (0.55, 0), (0.85, 0.42), (1.45, 0.42)]) + origin
    axis.plot(*curve.T, color=GREEN, lw=2.5)
    words(axis, (x + 0.55, y - 0.15), "threshold")
    words(axis, (x + 0.9, y + 0.46), "saturation", ha="left", va="bottom")


def removal_under_attack(subject: str, target: str) -> Figure:
    """Draw `concept_removal`: one change in several layers, held where MLPs are left out too."""
    figure, axis = canvas(3.35)
    base, step, level, before = 0.72, 0.235, 1.0, 2.45
    cases = (("all MLPs", set()), ("one left out", {3}), ("two left out", {5, 6}))
    for x, (title, left_out) in zip((0.05, 1.6, 3.15), cases, strict=True):
        words(axis, (x + 0.7, 3.22), title, weight="bold")
        for layer in range(9):
            corner, size = (x, base + layer * step), (0.75, 0.17)
            if layer in left_out:
                crossed_out(axis, corner, size)
            else:
                _changed(axis, corner, size, edited=2 <= layer <= 5)
        gauge = x + 1.1
        words(axis, (gauge, 2.93), shortened(target, 0.9))
        axis.plot([gauge, gauge], [base, before + 0.25], color=GREY, lw=1, zorder=0.5)
        axis.plot([gauge - 0.2, gauge + 0.2], [level, level], color=INK, lw=2, ls=":")
        arrow(axis, (gauge, before), (gauge, level + 0.06), colour=BLUE, lw=2.5)
        for y, face in ((before, WHITE), (level, BLUE)):
            axis.add_patch(Circle((gauge, y), 0.07, facecolor=face, edgecolor=BLUE, lw=2, zorder=3))
    symbol(axis, (0.88, 0.45), r"W_\mathrm{out}", ha="left")
    _changed(axis, (0.05, 0.37), (0.75, 0.17), edited=True)
    words(axis, (1.42, 0.45), "changed in place", ha="left")
    axis.plot([0.2, 0.6], [0.14, 0.14], color=INK, lw=2, ls=":")
    words(axis, (0.88, 0.14), f"other associations of {shortened(subject)}", ha="left")
    return figure


def _changed(axis: Axes, corner: Point, size: Point, *, edited: bool) -> None:
    """Draw an MLP's columns, all of them coloured if it is edited."""
    colours = {i: ORANGE if i % 3 else PALE_ORANGE for i in range(8)} if edited else {}
    stripes(axis, corner, size, 8, colours, upright=True)


def stitching(subject: str, target: str) -> Figure:
    """Draw stitching: the original's upper layers on the edited model's lower ones."""
    figure, axis = canvas(3.45)
    base, step, cut = 0.95, 0.22, 4
    last = base + 8 * step + 0.1
    answer = shortened(target, 0.9)
    models = (
        ("edited", 0.2, {*range(8)}, f"not {answer}"),
        ("stitched", 1.8, {*range(cut)}, f"{answer}?"),
        ("original", 3.4, set(), answer),
    )
    for name, x, edited, output in models:
        words(axis, (x + 0.5, 3.32), name, weight="bold")
        words(axis, (x + 0.5, last + 0.28), output)
        arrow(axis, (x + 0.5, last - 0.01), (x + 0.5, last + 0.17), mutation_scale=9)
        words(axis, (x + 0.5, base - 0.3), shortened(subject))
        arrow(axis, (x + 0.5, base - 0.19), (x + 0.5, base - 0.01), mutation_scale=9)
        for layer in range(8):
            y = base + layer * step + (0.1 if layer >= cut else 0)
            face = ORANGE if layer in edited else BLUE
            box(axis, (x, y), (1.0, 0.17), face=face, edge=INK, lw=0.8)
    lower, upper = base + 2 * step - 0.02, base + 6 * step + 0.08
    arrow(axis, (1.26, lower), (1.74, lower), lw=2.5)
    arrow(axis, (3.34, upper), (2.86, upper), lw=2.5)
    seam = base + cut * step + 0.02
    axis.plot([0.05, 4.55], [seam, seam], color=INK, lw=1.2, ls="--")
    conclusion = f"{answer}? Then the lower layers\nof the edited model compute it."
    words(axis, (2.3, 0.22), conclusion)
    return figure


def three_zeros(subject: str, target: str) -> Figure:
    """Draw the zeros of the recovery ratio: each differs from the original in one thing."""
    figure, axis = canvas(3.4)
    columns = (0.68, 2.02, 3.36)
    same = ("original", shortened(subject, 1.1), shortened(target, 1.1))
    rows = (
        ("original", {}, "1"),
        ("unrelated control", {1: "an unknown one"}, "0"),
        ("associated control", {2: "an association"}, "0"),
        ("retrain oracle", {0: "trained without"}, "0"),
    )
    for x, head in zip(columns, ("model", "subject", "scored answer"), strict=True):
        words(axis, (x, 3.27), head, weight="bold")
    for k, (name, different, ratio) in enumerate(rows):
        y = 2.67 - 0.77 * k
        words(axis, (0.06, y + 0.28), name, ha="left")
        for i, x in enumerate(columns):
            edge = ORANGE if i in different else GREY
            named_box(axis, (x, y), different.get(i, same[i]), width=1.24, height=0.3, edge=edge)
        words(axis, (4.3, y), ratio, fontsize=18, weight="bold")
    return figure
