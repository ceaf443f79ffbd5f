"""Style shared by every figure of the book: data in, a matplotlib figure out.

Colours are Okabe and Ito's, told apart by colour-blind readers; figures are SVG on white, which the
book's theme keeps as a card in dark mode.
"""

import re
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8A8A"
CYCLE = (BLUE, ORANGE, GREEN, PINK, "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D")
DASHES = ("-", "--", ":", "-.")
SITE_COLOURS = {"attention": ORANGE, "mlp": BLUE, "residual": GREEN, "embedding": GREY}
SITE_NAMES = {"attention": "attention", "mlp": "MLP", "residual": "residual stream"}
WIDTH = 7.2  # inches: the book's text column


def use_style() -> None:
    """Set the book's style for all figures that follow, as SVG in a notebook."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
            "svg.hashsalt": "llm-unlearning",
            "text.parse_math": False,  # a name with dollar signs is no formula
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats  # only in Jupyter
    except ImportError:
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


class _PlainPowers(LogFormatterSciNotation):
    """Ticks of a log axis, such as 10⁻², without mathtext: text on a figure is not parsed."""

    RAISED = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos).replace(r"\times", "×")
        power = re.search(r"\^\{(.*?)\}", text)
        if power:
            text = text.replace(power[0], power[1].translate(self.RAISED))
        return re.sub(r"\$|\\mathdefault|[{}]", "", text)


def log_scale(axes: Axes, *names: str) -> None:
    """Make the axes `x`, `y` or both logarithmic."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(_PlainPowers())
        axis.set_minor_formatter(_PlainPowers(minor_thresholds=(1, 0.4)))


def wrapped(text: str, width: int) -> str:
    """Break a text into lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width))


def histogram(
    values: dict[str, np.ndarray], *, xlabel: str, ylabel: str, bins: int | np.ndarray = 30
) -> Figure:
    """Draw overlaid distributions, the first one filled.

    Args:
        values: Name → values.
        xlabel: Label of the values.
        ylabel: Label of their share.
        bins: Number of bins, or their edges.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.5))
    pooled = np.concatenate([np.asarray(v).ravel() for v in values.values()])
    edges = np.histogram_bin_edges(pooled, bins)
    for i, (name, data) in enumerate(values.items()):
        colour = (BLUE, ORANGE, GREY)[i % 3]
        style = {"color": colour, "alpha": 0.6} if i == 0 else {"histtype": "step", "color": colour}
        weights = np.full(np.size(data), 1 / np.size(data))
        axis.hist(np.ravel(data), edges, weights=weights, label=name, **style)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure
