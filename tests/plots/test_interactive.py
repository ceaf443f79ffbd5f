"""Interactive charts: the table's rows and numbers, whatever its names and gaps."""

import json

import numpy as np
import pandas as pd
import pytest

from helpers.plots import interactive

ORDER = ["npo", "rome"]
QUOTES = 'a" || true || "'


def board(**columns) -> pd.DataFrame:
    """A leaderboard of three methods."""
    table = {
        "method": ["rome", "npo", "random_rows"],
        "family": ["surgery", "training", "control"],
        "facts": [6, 6, 2],
        "front": [True, False, False],
        "attacks find": ["absent 6", "hidden 6", "present 2"],
        "finding": ["absent", "found", "found"],
        "forgetting": [0.9, 0.5, 0.0],
        "forgetting low": [0.8, 0.4, np.nan],
        "forgetting high": [1.0, 0.6, np.nan],
        "retention": [0.95, 0.4, 1.0],
        "retention low": [0.9, 0.1, np.nan],
        "retention high": [1.0, 0.7, np.nan],
    }
    return pd.DataFrame(table | columns)


def effects(subjects: list[str]) -> pd.DataFrame:
    """Patching effects of each subject, whose number is its effect everywhere."""
    keys = [(s, p, i) for s in ("mlp", "residual") for p in ("subject", "last") for i in range(3)]
    rows = [(*key, name, float(n)) for n, name in enumerate(subjects) for key in keys]
    columns = ["site", "position", "layer", "subject", "patching_effect"]
    return pd.DataFrame(rows, columns=columns)


def rows_of(chart) -> list[dict]:
    """All rows of a chart's data."""
    spec = chart.to_dict()
    inline = [part.get("data", {}).get("values", []) for part in (spec, *spec["layer"])]
    return [row for rows in [*spec.get("datasets", {}).values(), *inline] for row in rows]


def params_of(chart) -> dict[str, dict]:
    return {param["name"]: param for param in chart.to_dict()["params"]}


def test_the_tradeoff_has_a_point_a_method_and_its_interval_in_words():
    rows = {row["method"]: row for row in rows_of(interactive.tradeoff(board()))}
    assert rows["rome"]["forgetting_text"] == "0.900 [0.800, 1.000]"
    assert rows["random_rows"]["forgetting_text"] == "0.000"
    assert rows["random_rows"]["finding"] == "control"


def test_a_method_without_forgetting_has_no_point():
    table = board(forgetting=[0.9, np.nan, np.nan])
    assert [row["method"] for row in rows_of(interactive.tradeoff(table))] == ["rome"]


def test_a_board_that_measured_nothing_makes_an_empty_chart():
    table = board(forgetting=np.nan).drop(columns=["forgetting low", "forgetting high"])
    chart = interactive.tradeoff(table)
    assert "0 methods" in chart.to_dict()["description"]
    json.dumps(chart.to_dict(), allow_nan=False)


def test_a_check_box_a_family_and_no_name_ends_an_expression():
    chart = interactive.tradeoff(board(family=["surgery", QUOTES, "control"]))
    params = params_of(chart)
    boxes = [p["bind"]["name"].strip() for n, p in params.items() if n.startswith("family_")]
    assert boxes == ["surgery", QUOTES, "control"]
    filters = json.dumps(chart.to_dict()["layer"])
    assert json.dumps(json.dumps(QUOTES))[1:-1] in filters


def test_results_under_attack_are_read_from_their_text():
    result = {
        "method": "rome",
        "P(target)": "0.031 [-0.016, 0.079]",
        "P: few shot": "0.010",
        "back: few shot": "-0.009 [-0.204, 0.186]",
        "seconds": "6",
    }
    rows = {(r["measure"], r["attack"]): r for r in rows_of(interactive.under_attack([result]))}
    assert len(rows) == 3
    no_attack = rows["P(target)", "no attack"]
    assert (no_attack["value"], no_attack["low"], no_attack["high"]) == (0.031, -0.016, 0.079)
    assert rows["P(target)", "few shot"]["low"] is None
    assert rows["recovery ratio", "few shot"]["value"] == -0.009


def test_a_concept_has_a_point_and_a_place_in_the_list():
    table = pd.DataFrame({"concept": ["Peru", QUOTES], "neuron": [0.1, 0.2], "latent": [0.3, 0.4]})
    chart = interactive.each_concept(table, x="neuron", y="latent")
    assert {"concept": "Peru", "x": 0.1, "y": 0.3} in rows_of(chart)
    assert params_of(chart)["picked_concept"]["bind"]["options"] == ["none", "Peru", QUOTES]


@pytest.mark.parametrize("n", [1, 3, 20])
def test_at_most_twelve_facts_can_be_picked_and_the_mean_is_over_all(n):
    subjects = [f"Land {i}" for i in range(n)]
    chart = interactive.each_fact(effects(subjects))
    assert params_of(chart)["picked_fact"]["bind"]["options"] == subjects[:12]
    curves = rows_of(chart)
    (mean, *_) = [curve for curve in curves if curve["fact"].startswith("mean over")]
    assert mean["fact"] == f"mean over {n} fact{'s' * (n != 1)}"
    assert mean["effect"] == [pytest.approx((n - 1) / 2, abs=1e-3)] * 3
    assert len(curves) == 4 * (min(n, 12) + 1)


def per_fact(**columns) -> pd.DataFrame:
    """What two methods leave of two facts, one of which the second method was not tried on."""
    table = {
        "method": ["rome", "npo", "rome"],
        "subject": ["Peru", "Chad", "Chad"],
        "by name": [0.01, 0.2, 0.02],
        "by stitching": [np.nan, 0.5, 0.03],
        "before": [0.6, 0.7, 0.7],
        "state": ["absent", "hidden", ""],
    }
    return pd.DataFrame(table | columns)


def test_the_fact_that_most_methods_have_comes_first_and_what_was_not_attacked_is_said():
    chart = interactive.methods_on_a_fact(per_fact(), order=ORDER)
    assert params_of(chart)["picked_fact"]["bind"]["options"] == ["Chad", "Peru"]
    states = {(row["method"], row["subject"]): row["state"] for row in rows_of(chart)}
    assert states["rome", "Chad"] == "not attacked" and states["npo", "Chad"] == "hidden"
    json.dumps(chart.to_dict(), allow_nan=False)


def test_a_chart_of_no_fact_and_one_of_a_hostile_name_are_made():
    empty = interactive.methods_on_a_fact(per_fact()[:0], order=ORDER)
    assert "0 facts" in empty.to_dict()["description"]
    named = interactive.methods_on_a_fact(per_fact(subject=QUOTES), order=ORDER)
    assert params_of(named)["picked_fact"]["bind"]["options"] == [QUOTES]


def test_a_region_and_sliders_choose_methods():
    params = params_of(interactive.tradeoff(board()))
    assert params["brush"]["select"]["type"] == "interval"
    assert {p["bind"]["input"] for n, p in params.items() if n.startswith("least_")} == {"range"}
