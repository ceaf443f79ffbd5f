"""Every figure of the book, in one style: data in, a matplotlib figure out.

Colours are Okabe and Ito's, told apart by colour-blind readers; figures are SVG on white, which the
book's theme keeps as a card in dark mode.
"""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation

from helpers.io.safe_text import visible

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8A8A"
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
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside Jupyter
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


class _PlainPowers(LogFormatterSciNotation):
    """Ticks of a log axis, 10⁻², without mathtext: words on a figure are not parsed."""

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


def likeliest_answers(
    prompts: Sequence[str], answers: Sequence[Sequence[tuple[str, float]]]
) -> Figure:
    """For each prompt a small bar chart of its likeliest next tokens."""
    figure, axes = plt.subplots(1, len(prompts), figsize=(WIDTH, 2.3), sharex=True, squeeze=False)
    for axis, prompt, best in zip(axes[0], prompts, answers, strict=True):
        tokens, values = [visible(t) for t, _ in best][::-1], [p for _, p in best][::-1]
        axis.barh(range(len(tokens)), values, color=[GREY] * (len(tokens) - 1) + [BLUE])
        axis.set_yticks(range(len(tokens)), tokens)
        axis.set(title=_wrapped(prompt, 34), xlabel="probability", xlim=(0, 1))
        axis.grid(axis="y", visible=False)
    return figure


def known_facts(table: pd.DataFrame, subject: str) -> Figure:
    """Every fact of a relation, sorted by how likely the model finds it; one is marked.

    Args:
        table: `helpers.facts.known_facts`: subject, probability, low and high over templates,
            known.
        subject: The fact to mark.
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


def selectivity_by_layer(observed: np.ndarray, permuted: np.ndarray, *, threshold: float) -> Figure:
    """How many neurons a layer has that tell the subject apart, against chance.

    Args:
        observed: Area under the ROC curve of each neuron, (layers, d_mlp).
        permuted: The same with another subject's prompts in the subject's place,
            (repetitions, layers, d_mlp).
        threshold: What counts as selective.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    layers = np.arange(len(observed))
    axis.bar(layers, (observed >= threshold).sum(1), color=BLUE, label="the subject")
    chance = (permuted >= threshold).sum(2)
    axis.plot(layers, np.median(chance, 0), color=ORANGE, label="another subject (median)")
    axis.fill_between(layers, chance.min(0), chance.max(0), color=ORANGE, alpha=0.2, lw=0)
    axis.set(xlabel="layer", ylabel=f"neurons with AUROC ≥ {threshold:g}")
    axis.legend()
    return figure


def activations_of_neurons(
    inside: np.ndarray, outside: np.ndarray, names: Sequence[str], subject: str
) -> Figure:
    """Activations of a few neurons on one subject and on all others.

    Args:
        inside: (prompts about the subject, neurons).
        outside: (prompts about others, neurons).
        names: The neurons' names.
        subject: The subject's name.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    jitter = np.random.default_rng(0)
    for i in range(len(names)):
        for values, colour, z in ((outside, GREY, 1), (inside, ORANGE, 2)):
            x = i + jitter.uniform(-0.22, 0.22, len(values))
            axis.plot(x, values[:, i], ".", color=colour, ms=4, alpha=0.6, zorder=z)
    axis.plot([], [], "o", color=ORANGE, label=subject)
    axis.plot([], [], "o", color=GREY, label="other subjects")
    axis.set_xticks(range(len(names)), names, rotation=20)
    axis.set(ylabel="activation")
    axis.legend()
    return figure


def ranks_by_layer(found: pd.DataFrame) -> Figure:
    """Best rank of the target in what groups of value columns write, layer by layer.

    Args:
        found: One row per layer and group: layer, group, rank.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    groups = found["group"].unique()
    for group, colour in zip(groups, (BLUE, GREY, ORANGE), strict=False):
        part = found[found["group"] == group]
        axis.plot(part["layer"], part["rank"] + 1, "o-", color=colour, ms=3, label=group)
    axis.set(xlabel="layer", ylabel="best rank of the target")
    log_scale(axis, "y")
    axis.invert_yaxis()
    axis.legend()
    return figure


def logit_lens(table: pd.DataFrame) -> Figure:
    """Probability and rank of the answer after every layer, one thin line a prompt.

    Args:
        table: `helpers.tracing.logit_lens`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    for _, part in table.groupby("prompt"):
        left.plot(part["layer"], part["probability"], color=BLUE, alpha=0.3, lw=1)
        right.plot(part["layer"], part["rank"] + 1, color=BLUE, alpha=0.3, lw=1)
    mean = table.groupby("layer")["probability"].mean()
    left.plot(mean.index, mean, color=ORANGE, lw=2, label="mean over prompts")
    median = table.groupby("layer")["rank"].median() + 1
    right.plot(median.index, median, color=ORANGE, lw=2, label="median over prompts")
    label_lens(left, right)
    left.legend()
    right.legend()
    return figure


def label_lens(left: Axes, right: Axes) -> None:
    """Axes of the logit lens: probability on the left, rank on the right, the first rank on top."""
    left.set(xlabel="after layer", ylabel="P(answer's first token)", ylim=(0, 1))
    right.set(xlabel="after layer", ylabel="rank of the answer")
    log_scale(right, "y")
    right.invert_yaxis()


def patching_map(table: pd.DataFrame) -> Figure:
    """Share of the answer moved by each state: layers upwards, tokens across, a panel a site.

    Args:
        table: `helpers.tracing.activation_patching`.
    """
    sites = list(table["site"].unique())
    figure, axes = plt.subplots(1, len(sites), figsize=(WIDTH, 4.4), sharey=True)
    for axis, site in zip(np.atleast_1d(axes), sites, strict=True):
        part = table[table["site"] == site]
        grid = part.pivot(index="layer", columns="position", values="patching_effect")
        grid = grid[sorted(grid.columns, key=int)]
        image = axis.imshow(
            grid, origin="lower", aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="none"
        )
        labels = part.drop_duplicates("position").set_index("position")["tokens"]
        axis.set_xticks(
            range(grid.shape[1]), [labels[c].strip() or "␣" for c in grid.columns], rotation=45
        )
        axis.set(title=SITE_NAMES.get(site, site))
        axis.grid(visible=False)
    np.atleast_1d(axes)[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="share of the answer moved", shrink=0.8)
    return figure


def heads_map(table: pd.DataFrame) -> Figure:
    """Share of the answer moved by each attention head at the last token.

    Args:
        table: One row per layer and head: layer, head, patching_effect.
    """
    grid = table.pivot(index="head", columns="layer", values="patching_effect")
    figure, axis = plt.subplots(figsize=(WIDTH, 2.4))
    image = axis.imshow(grid, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="none")
    axis.set(xlabel="layer", ylabel="head")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="share moved")
    return figure


def shares_by_layer(
    groups: dict[str, pd.DataFrame], *, ylabel: str = "share of the answer moved"
) -> Figure:
    """Means over facts with their intervals, layer by layer, a panel a group.

    Args:
        groups: Panel title → table with layer, site, value, low, high.
        ylabel: What is averaged.
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(WIDTH, 2.8), sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes[0], groups.items(), strict=True):
        for site, part in table.groupby("site", sort=False):
            colour = SITE_COLOURS.get(site, GREY)
            axis.plot(
                part["layer"],
                part["value"],
                "o-",
                ms=3,
                color=colour,
                label=SITE_NAMES.get(site, site),
            )
            axis.fill_between(
                part["layer"], part["low"], part["high"], color=colour, alpha=0.2, lw=0
            )
        axis.axhline(0, color="black", lw=0.6)
        axis.set(title=title, xlabel="layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel(ylabel)
    axes[0][0].legend()
    return figure


def deletion_curve(table: pd.DataFrame) -> Figure:
    """Forgetting and collateral as more neurons are deleted, against random neurons.

    Args:
        table: One row per method, number of neurons and metric: method, n_neurons, metric, value,
            low, high. Values are shares of what was there before.
    """
    metrics = list(table["metric"].unique())
    figure, axes = plt.subplots(1, len(metrics), figsize=(WIDTH, 2.9), sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = table[table["metric"] == metric]
        for (name, rows), colour in zip(
            part.groupby("method", sort=False), (ORANGE, GREY), strict=False
        ):
            axis.plot(rows["n_neurons"], rows["value"], "o-", ms=3, color=colour, label=name)
            axis.fill_between(
                rows["n_neurons"], rows["low"], rows["high"], color=colour, alpha=0.2, lw=0
            )
        axis.set(title=metric, xlabel="deleted neurons")
        log_scale(axis, "x")
    axes[0][0].set(ylabel="share left", ylim=(-0.03, 1.25))
    axes[0][0].legend()
    return figure


def histogram(
    values: dict[str, np.ndarray], *, xlabel: str, ylabel: str, bins: int | np.ndarray = 30
) -> Figure:
    """Overlaid distributions, the first one filled."""
    figure, axis = plt.subplots(figsize=(WIDTH, 2.5))
    everything = np.concatenate([np.asarray(v).ravel() for v in values.values()])
    edges = np.histogram_bin_edges(everything, bins)
    for i, (name, data) in enumerate(values.items()):
        colour = (BLUE, ORANGE, GREY)[i % 3]
        style = {"color": colour, "alpha": 0.6} if i == 0 else {"histtype": "step", "color": colour}
        weights = np.full(np.size(data), 1 / np.size(data))
        axis.hist(np.ravel(data), edges, weights=weights, label=name, **style)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
