"""Interactive versions of figures: a table in, an Altair chart out.

Each goes with a static figure or a table, which a page shows without scripts too. Charts are driven
by form controls, so that the keyboard does what the mouse does. Colours can be told apart on white
and on black. Altair takes seconds to import, and this module alone imports it.
"""

import json
from collections.abc import Sequence

import altair as alt
import pandas as pd

from helpers.io.wording import number_of
from helpers.plots.base import BLUE, GREEN, GREY, ORANGE, PINK, SITE_NAMES
from helpers.plots.verify import FINDING_COLOURS
from helpers.stats.intervals import format_interval

COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
WIDTH = 560  # pixels, in JupyterLab; a page makes a chart as wide as its text
TEXT = "currentColor"  # of the page, light or dark
NOT_ATTACKED = "#767676"  # black in the static figure, which stands on white
NO_STATE = "not attacked"
STATE_COLOURS = {"suppressed": PINK, "hidden": ORANGE, "present": GREY}
STATE_COLOURS |= {s: FINDING_COLOURS[s] for s in ("partial", "undecided", "absent")}
MAX_FACTS = 12
CHOSEN = 1  # opacity of the points that `interactive_charts.js` lists below a chart
NO_ATTACK = "no attack"
POSITIONS = {"subject": "at the subject", "last": "at the last token"}


def tradeoff(board: pd.DataFrame) -> alt.LayerChart:
    """Chart every method by forgetting and retention, with its numbers on hover.

    Check boxes show or hide families. A list picks one method, which then has its name and its
    intervals. Dragging chooses the methods of a region, and two sliders those above a value: the
    others turn faint, and a page lists the chosen. The wheel with the control key scales the axes.

    Args:
        board: From `helpers.evaluation.leaderboard.leaderboard`.
    """
    board = board.dropna(subset=["forgetting", "retention"])
    rows = board[["method", "family", "facts", "front", "attacks find"]].reset_index(drop=True)
    rows["finding"] = board["finding"].where(board["family"] != "control", "control").to_list()
    for metric in ("forgetting", "retention"):
        columns = [metric, f"{metric} low", f"{metric} high"]
        bounds = board.reindex(columns=columns).astype(float)
        rows[[metric, f"{metric}_low", f"{metric}_high"]] = bounds.round(4).to_numpy()
        rows[f"{metric}_text"] = [format_interval(*row) for row in bounds.to_numpy()]
    colours = FINDING_COLOURS | {"not attacked": NOT_ATTACKED}
    kinds = [kind for kind in colours if (rows["finding"] == kind).any()]
    families = list(dict.fromkeys(rows["family"]))
    switches, is_shown = _switches("family", families)
    picked = _picker("method", ["none", *rows["method"]])
    zoom = alt.selection_interval(
        name="zoom", bind="scales", translate=False, zoom="wheel![event.ctrlKey]"
    )
    brush = alt.selection_interval(
        name="brush", zoom=False, mark=alt.BrushConfig(fill=GREY, fillOpacity=0.15, stroke=TEXT)
    )
    sliders = [
        alt.param(
            name=f"least_{metric}",
            value=0,
            bind=alt.binding_range(min=0, max=1, step=0.01, name=f"{metric}, at least: "),
        )
        for metric in ("forgetting", "retention")
    ]
    is_high = "datum.forgetting >= least_forgetting && datum.retention >= least_retention"
    chosen = {"test": {"and": [{"param": "brush"}, is_high]}, "value": CHOSEN}

    base = alt.Chart(rows).transform_filter(is_shown)
    x = alt.X(
        "forgetting:Q",
        title="forgetting: 1 at the level of controls",
        axis=alt.Axis(tickCount=6),
        scale=alt.Scale(domain=[-0.05, 1.05], nice=False),
    )
    lowest = min(0.9, rows["retention_low"].min(), rows["retention"].min())
    y = alt.Y(
        "retention:Q",
        title="retention of the worst group",
        scale=alt.Scale(domain=[round(lowest - 0.05, 2), 1.1], nice=False),
    )
    points = base.mark_point(filled=True, size=70, clip=True).encode(
        x,
        y,
        opacity=alt.OpacityValue(0.15, condition=chosen),
        color=alt.Color("finding:N", scale=_scale(kinds, [colours[k] for k in kinds])),
        shape=alt.Shape("family:N", scale=_scale(families, SHAPES[: len(families)])),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("family:N"),
            alt.Tooltip("forgetting_text:N", title="forgetting"),
            alt.Tooltip("retention_text:N", title="retention"),
            alt.Tooltip("facts:Q"),
            alt.Tooltip("attacks find:N"),
        ],
    )
    ring = base.transform_filter("datum.front").mark_point(
        size=170, stroke=TEXT, strokeWidth=1.5, clip=True, tooltip=None, aria=False
    )
    one = base.transform_filter("datum.method == picked_method")
    across = one.mark_rule(color=TEXT, clip=True, aria=False).encode(y="retention:Q")
    across = across.encode(alt.X("forgetting_low:Q"), alt.X2("forgetting_high:Q"))
    up = one.mark_rule(color=TEXT, clip=True, aria=False).encode(x="forgetting:Q")
    up = up.encode(alt.Y("retention_low:Q"), alt.Y2("retention_high:Q"))
    name = one.mark_text(color=TEXT, dy=-14, fontWeight="bold", aria=False).encode(
        x, y, text="method:N"
    )
    layers = alt.layer(ring.encode(x, y), points.add_params(zoom, brush), across, up, name)
    return layers.add_params(*switches, picked, *sliders).properties(
        width=WIDTH,
        height=360,
        title=_note(
            "Drag to choose, or use the sliders. Control and wheel to zoom. Double click to undo."
        ),
        description=f"Scatter plot of {number_of(len(rows), 'method')} by forgetting and by "
        "retention of the worst group, coloured by what the attacks find.",
    )


def under_attack(results: Sequence[dict]) -> alt.LayerChart:
    """Chart the target's probability, or the recovery ratio, by method and attack.

    Args:
        results: Rows of `benchmarks/results/robustness.json`: method, and as text with an interval
            in brackets `P(target)`, and `P: <attack>` and `back: <attack>` for each attack.
    """
    measures = {"P: ": "P(target)", "back: ": "recovery ratio"}
    rows = []
    for result in results:
        if "P(target)" in result:
            rows.append((result["method"], "P(target)", NO_ATTACK, result["P(target)"]))
        for column, text in result.items():
            for prefix, measure in measures.items():
                if column.startswith(prefix):
                    attack = column.removeprefix(prefix)
                    rows.append((result["method"], measure, attack, text))
    table = pd.DataFrame(rows, columns=["method", "measure", "attack", "text"])
    numbers = table["text"].str.findall(r"-?\d[\d.e-]*").map(lambda x: [*map(float, x), None, None])
    for i, column in enumerate(("value", "low", "high")):
        table[column] = numbers.str[i].astype(float)
    methods = list(dict.fromkeys(table["method"]))
    n_attacks = table.loc[table["attack"] != NO_ATTACK, "attack"].nunique()
    switches, is_shown = _switches("method", methods)
    radio = alt.param(
        name="measure",
        value="P(target)",
        bind=alt.binding_radio(options=list(measures.values()), name="Measure: "),
    )
    base = alt.Chart(table).transform_filter("datum.measure == measure").transform_filter(is_shown)
    y = alt.Y("attack:N", title=None, sort=list(dict.fromkeys(table["attack"])))
    offset = alt.YOffset("method:N", sort=methods)
    colour = alt.Color("method:N", scale=_scale(methods, COLOURS * 9))
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        alt.X("value:Q", title="mean over facts"),
        y,
        offset,
        colour,
        shape=alt.Shape("method:N", scale=_scale(methods, SHAPES * 9)),
        tooltip=["method:N", "attack:N", alt.Tooltip("text:N", title="mean")],
    )
    lines = base.mark_rule(aria=False).encode(
        alt.X("low:Q", title=""), alt.X2("high:Q"), y, offset, colour
    )
    return (
        alt.layer(lines, points)
        .add_params(radio, *switches)
        .properties(
            width=WIDTH,
            height=alt.Step(9),
            description=f"Dot plot of {number_of(len(methods), 'method')} under "
            f"{number_of(n_attacks, 'attack')}, with 95 % intervals; the table above has the "
            "numbers.",
        )
    )


def methods_on_a_fact(table: pd.DataFrame, *, order: Sequence[str]) -> alt.LayerChart:
    """Chart what each method leaves of one fact that a list picks, by name and by stitching.

    Args:
        table: From `helpers.evaluation.leaderboard.by_fact`; of its facts those that most methods
            have come first in the list, `MAX_FACTS` at most.
        order: Methods from top to bottom.
    """
    facts = list(table["subject"].value_counts(sort=True).index[:MAX_FACTS])
    rows = table[table["subject"].isin(facts)].replace({"state": {"": NO_STATE}}).round(4)
    rows = rows.rename(columns={"by name": "name", "by stitching": "stitched"})
    colours = STATE_COLOURS | {NO_STATE: NOT_ATTACKED}
    states = [state for state in colours if (rows["state"] == state).any()]
    picked = _picker("fact", facts)
    base = alt.Chart(rows).transform_filter("datum.subject == picked_fact")
    y = alt.Y("method:N", title=None, sort=list(order))
    x = alt.X("name:Q", title="P(target)", scale=alt.Scale(domain=[0, 1]))
    colour = alt.Color(
        "state:N",
        title="the attacks find",
        scale=_scale(states, [colours[state] for state in states]),
    )
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("name:Q", title="by name"),
        alt.Tooltip("stitched:Q", title="by stitching"),
        alt.Tooltip("before:Q", title="before the edit"),
        alt.Tooltip("state:N", title="the attacks find"),
    ]
    before = base.mark_rule(color=TEXT, strokeDash=[4, 3], aria=False).encode(x="mean(before):Q")
    lines = base.mark_rule(aria=False).encode(x, alt.X2("stitched:Q"), y, colour)
    stitched = base.transform_filter("isValid(datum.stitched)").mark_point(
        shape="square", filled=True, size=60, opacity=1, aria=False
    )
    named = base.mark_point(filled=True, size=60, opacity=1).encode(x, y, colour, tooltip=tooltip)
    squares = stitched.encode(alt.X("stitched:Q"), y, colour, tooltip=tooltip)
    return (
        alt.layer(before, lines, squares, named)
        .add_params(picked)
        .properties(
            width=WIDTH,
            height=alt.Step(18),
            title=_note("Disc: asked by name. Square: by stitching. Dashed: before the edit."),
            description="Dot plot with a row a method: P(target) of one fact by name (disc) and "
            f"under stitching (square), of {number_of(len(facts), 'fact')} that a list picks; "
            "dashed, before the edit.",
        )
    )


def each_concept(table: pd.DataFrame, *, x: str, y: str) -> alt.LayerChart:
    """Chart one point a concept: F1 of the best unit of one kind against that of another.

    Args:
        table: concept and the two columns.
        x: Column of the one kind.
        y: Column of the other.
    """
    rows = table.rename(columns={x: "x", y: "y"})[["concept", "x", "y"]].round(3)
    picked = _picker("concept", ["none", *sorted(rows["concept"])])
    axes = (
        alt.X("x:Q", title=f"F1 of the best {x}", scale=alt.Scale(domain=[0, 1])),
        alt.Y("y:Q", title=f"F1 of the best {y}", scale=alt.Scale(domain=[0, 1])),
    )
    tooltip = [alt.Tooltip("concept:N"), alt.Tooltip("x:Q", title=x), alt.Tooltip("y:Q", title=y)]
    base = alt.Chart(rows)
    points = base.mark_point(filled=True, size=60, color=BLUE, opacity=1).encode(
        *axes, tooltip=tooltip
    )
    one = base.transform_filter("datum.concept == picked_concept")
    mark = one.mark_point(filled=True, size=130, color=ORANGE, opacity=1, aria=False).encode(
        *axes, tooltip=tooltip
    )
    name = one.mark_text(color=TEXT, dy=-14, fontWeight="bold", aria=False).encode(
        *axes, text="concept:N"
    )
    diagonal = alt.Chart(pd.DataFrame({"x": [0, 1], "y": [0, 1]})).mark_line(
        color=GREY, size=1, aria=False
    )
    return (
        alt.layer(diagonal.encode(*axes), points, mark, name)
        .add_params(picked)
        .properties(
            width=WIDTH,
            height=360,
            description=f"Scatter plot of {number_of(len(rows), 'concept')}: F1 of the best {y} "
            f"against that of the best {x}.",
        )
    )


def each_fact(table: pd.DataFrame) -> alt.LayerChart:
    """Chart the patching effect layer by layer for one fact that a list picks, beside the mean.

    Args:
        table: From `helpers.tracing.patching_over_facts`; of its facts the first `MAX_FACTS` can be
            picked, and the mean is over all.
    """
    keys = ["position", "site", "layer"]
    subjects = list(dict.fromkeys(table["subject"]))
    mean = table.groupby(keys, as_index=False)["patching_effect"].mean()
    mean_name = f"mean over {number_of(len(subjects), 'fact')}"
    parts = [mean.assign(subject=mean_name), table[table["subject"].isin(subjects[:MAX_FACTS])]]
    curves = [  # one row a line, so that the layers and names are not repeated for each point
        {
            "fact": subject,
            "site": site,
            "position": POSITIONS.get(position, position),
            "layer": part["layer"].to_list(),
            "effect": part["patching_effect"].round(3).to_list(),
        }
        for (subject, position, site), part in pd.concat(parts).groupby(
            ["subject", "position", "site"], sort=False
        )
    ]
    sites = sorted(table["site"].unique(), reverse=True)  # the residual stream first
    picked = _picker("fact", subjects[:MAX_FACTS])
    site = alt.param(
        name="site",
        value=sites[0],
        bind=alt.binding_radio(
            options=sites, labels=[SITE_NAMES.get(s, s) for s in sites], name="Written by: "
        ),
    )
    positions = [name for name in POSITIONS.values() if name in {c["position"] for c in curves}]
    base = alt.Chart(alt.Data(values=curves)).transform_filter("datum.site == site")
    base = base.transform_flatten(["layer", "effect"]).encode(
        alt.X("layer:Q", axis=alt.Axis(tickMinStep=1)),
        alt.Y("effect:Q", title="share of the answer moved"),
        alt.Color("position:N", scale=_scale(positions, COLOURS)),
    )
    is_mean = f"datum.fact == {json.dumps(mean_name)}"
    average = base.transform_filter(is_mean).mark_line(strokeDash=[3, 3], opacity=0.8)
    one = base.transform_filter("datum.fact == picked_fact").mark_line(point=alt.OverlayMarkDef())
    tooltip = ["fact:N", "position:N", "layer:Q", alt.Tooltip("effect:Q", title="share moved")]
    return (
        alt.layer(average, one.encode(tooltip=tooltip))
        .add_params(picked, site)
        .properties(
            width=WIDTH,
            height=260,
            description="Lines over layers: the share of the answer that each state moves for one "
            f"fact (solid), and the {mean_name} (dashed).",
        )
    )


def _note(text: str) -> alt.Title:
    return alt.Title(text, anchor="start", fontSize=11, fontWeight="normal")


def _scale(domain: Sequence[str], range_: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(domain), range=list(range_[: len(domain)]))


def _picker(name: str, options: Sequence[str]) -> alt.Parameter:
    """Make a list `picked_<name>`, set to its first option."""
    bind = alt.binding_select(options=list(options), name=f"{name.capitalize()}: ")
    return alt.param(name=f"picked_{name}", value=next(iter(options), None), bind=bind)


def _switches(field: str, values: Sequence[str]) -> tuple[list[alt.Parameter], str]:
    """Make a check box for each value of a field, and the expression that filters by them."""
    boxes = [
        alt.param(name=f"{field}_{i}", value=True, bind=alt.binding_checkbox(name=f"{value} "))
        for i, value in enumerate(values)
    ]
    tests = (f"(datum.{field} == {json.dumps(v)} && {field}_{i})" for i, v in enumerate(values))
    return boxes, " || ".join(tests)
