"""Parts of schematics: boxes, matrices, arrows and words, placed in inches on a blank figure."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.textpath import text_to_path

from helpers.io.safe_text import visible
from helpers.plots.base import GREY

WIDTH = 4.6  # inches: type of 10 points is still 10 pixels high where a phone shows 342 pixels
SIZE, SYMBOL_SIZE = 10, 13  # points: words, and symbols whose indices are smaller
LONGEST = 60  # characters of a name that are looked at
INK, PALE, WHITE = "#222222", "#E9E9E9", "#FFFFFF"
Point = tuple[float, float]


def canvas(height: float) -> tuple[Figure, Axes]:
    """Open a blank figure whose coordinates are inches, from its lower left corner.

    Args:
        height: Height of the figure, in inches.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0, h_pad=0)
    axis.set(xlim=(0, WIDTH), ylim=(0, height), aspect="equal")
    axis.set_axis_off()
    return figure, axis


def shortened(name: str, width: float = 1.2) -> str:
    """Cut a name of a user's to at most `width` inches, with control characters written out."""
    name = visible(name.strip())
    cut = (f"{name[:n]}…" for n in range(min(len(name), LONGEST) - 1, 0, -1))
    return next((text for text in chain([name[:LONGEST]], cut) if _inches(text) <= width), "…")


def _inches(text: str) -> float:
    """Measure the width of plain text."""
    font = FontProperties(size=SIZE)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def words(axis: Axes, at: Point, text: str, **style: Any) -> None:
    """Write plain text, which is never read as a formula, centred at a point."""
    style = {"ha": "center", "va": "center", "fontsize": SIZE, "color": INK, **style}
    axis.text(*at, text, parse_math=False, **style)


def symbol(axis: Axes, at: Point, formula: str, **style: Any) -> None:
    """Write a formula of mathtext, without its dollar signs, centred at a point."""
    style = {"ha": "center", "va": "center", "fontsize": SYMBOL_SIZE, "color": INK, **style}
    axis.text(*at, f"${formula}$", parse_math=True, **style)


def box(
    axis: Axes, corner: Point, size: Point, *, face: str = PALE, edge: str = GREY, **style: Any
) -> None:
    """Draw a rounded box.

    Args:
        axis: Axes of `canvas`.
        corner: Its lower left corner.
        size: Width and height.
        face: Colour of its area.
        edge: Colour of its outline.
        style: More properties of the patch.
    """
    style = {"lw": 1, "boxstyle": "round,pad=0,rounding_size=0.05", **style}
    axis.add_patch(FancyBboxPatch(corner, *size, facecolor=face, edgecolor=edge, **style))


def named_box(
    axis: Axes, centre: Point, text: str, *, width: float, edge: str = GREY, height: float = 0.27
) -> None:
    """Draw a white box around a few words.

    Args:
        axis: Axes of `canvas`.
        centre: Its centre.
        text: The words.
        width: Width of the box.
        edge: Colour of its outline.
        height: Height of the box.
    """
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    box(axis, corner, (width, height), face=WHITE, edge=edge, lw=1.5)
    words(axis, centre, text)


def cells(
    axis: Axes, corner: Point, size: Point, shades: Sequence[Sequence[float]], colour: str
) -> None:
    """Draw a matrix as a grid of cells, each as deep in colour as its number.

    Args:
        axis: Axes of `canvas`.
        corner: Its lower left corner.
        size: Width and height.
        shades: Numbers from 0 to 1, (rows, columns), the top row first.
        colour: The colour of 1.
    """
    n_rows, n_columns = len(shades), len(shades[0])
    width, height = size[0] / n_columns, size[1] / n_rows
    for i, row in enumerate(shades):
        for j, shade in enumerate(row):
            at = (corner[0] + j * width, corner[1] + (n_rows - 1 - i) * height)
            axis.add_patch(Rectangle(at, width, height, facecolor=colour, alpha=shade, lw=0))
            axis.add_patch(Rectangle(at, width, height, fill=False, edgecolor="#BBBBBB", lw=0.6))
    axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=INK, lw=1))


def vector(axis: Axes, corner: Point, height: float, shades: Sequence[float], colour: str) -> None:
    """Draw a vector as a column of `cells`, from the top."""
    cells(axis, corner, (0.2, height), [[shade] for shade in shades], colour)


def stripes(
    axis: Axes,
    corner: Point,
    size: Point,
    n: int,
    colours: Mapping[int, str],
    *,
    upright: bool = False,
) -> None:
    """Draw a matrix as its rows or its columns, some of them coloured and the others pale.

    Args:
        axis: Axes of `canvas`.
        corner: Its lower left corner.
        size: Width and height.
        n: Number of rows or columns.
        colours: Number of a row, from the top, or of a column → its colour.
        upright: Draw columns; otherwise rows.
    """
    step = size[0 if upright else 1] / n
    for i in range(n):
        shift = (i * step, 0.0) if upright else (0.0, (n - 1 - i) * step)
        at = (corner[0] + shift[0], corner[1] + shift[1])
        stripe = (step, size[1]) if upright else (size[0], step)
        colour = colours.get(i, PALE)
        axis.add_patch(Rectangle(at, *stripe, facecolor=colour, edgecolor=WHITE, lw=0.8))
    axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=INK, lw=1))


def crossed_out(axis: Axes, corner: Point, size: Point) -> None:
    """Draw the outline of a part that is left out, crossed."""
    axis.add_patch(Rectangle(corner, *size, facecolor=WHITE, edgecolor=INK, lw=1, ls="--"))
    (x, y), (width, height) = corner, size
    axis.plot([x, x + width], [y, y + height], color=INK, lw=1)
    axis.plot([x, x + width], [y + height, y], color=INK, lw=1)


def arrow(axis: Axes, start: Point, end: Point, *, colour: str = INK, **style: Any) -> None:
    """Draw an arrow from one point to another."""
    style = {"lw": 1.5, "mutation_scale": 12, "arrowstyle": "-|>", **style}
    patch = FancyArrowPatch(start, end, color=colour, shrinkA=0, shrinkB=0, **style)
    axis.add_patch(patch)
