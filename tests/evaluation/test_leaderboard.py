"""The leaderboard: tidy rows with their provenance, one row a method, the front."""

import numpy as np
import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation.leaderboard import by_fact, leaderboard, pareto, tidy, with_exact
from helpers.evaluation.meta.verdict_accuracy import PREDICTED_STATES
from helpers.evaluation.tradeoff import EvalConfig, tradeoff
from helpers.evaluation.tradeoff_summary import most_recovered, summary
from helpers.facts import ConceptPair
from helpers.methods import METHODS
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.methods.registry import Hyperparameters, Method

ABOUT = {"a": {"commit": "c0ffee", "profile": "default", "model_hash": "12ab"}, "b": {}}


def results(
    method: str,
    remaining,
    neighbours,
    *,
    refused=(),
    family="surgery",
    seed=0,
    states="absent",
    removes=True,
    appends=False,
):
    """A table of `tradeoff`; `states`: the predicted state of all facts, or a list with None."""
    n = len(remaining)
    states = [states] * n if isinstance(states, str) else states
    states = [None if i in refused else state for i, state in enumerate(states)]
    table = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(n)],
            "target": [f"t{i}" for i in range(n)],
            "method": method,
            "family": family,
            "seed": seed,
            "scale": 1.0,
            "refused": ["why" if i in refused else "" for i in range(n)],
            "seconds": 2.0,
            "paraphrases": [np.nan if i in refused else x * 0.8 for i, x in enumerate(remaining)],
            "paraphrases_before": [np.nan if i in refused else 0.8 for i in range(n)],
            "neighbours": [np.nan if i in refused else x for i, x in enumerate(neighbours)],
            "change_neighbours": [
                np.nan if i in refused else abs(x - 1) for i, x in enumerate(neighbours)
            ],
            "removes": [None if i in refused else removes for i in range(n)],
            "appends": [None if i in refused else appends for i in range(n)],
        }
    )
    for word in PREDICTED_STATES:
        table[f"state_{word}"] = [np.nan if s is None else float(s == word) for s in states]
    return table


def board_of(*tables) -> pd.DataFrame:
    return leaderboard(tidy({"a": pd.concat(tables, ignore_index=True)}, ABOUT))


def test_a_method_that_only_hides_is_seen_by_what_stitching_brings_back(knowing, monkeypatch):
    def hides(model, pair, hparams, *, seed):
        return logit_suppression(model, pair).delta

    model, pair = knowing(), ConceptPair("France", "Paris")
    monkeypatch.setitem(METHODS, "hides", Method("hides", "surgery", hides, Hyperparameters))
    methods = {"hides": {}, "gated_neuron": {"layers": (0,)}, "in_context": {}}
    scales = dict.fromkeys(methods, (1.0,))
    table = tradeoff(model, [pair], methods, scales=scales, config=EvalConfig("heldout", 2, 128))
    means = summary(table)
    value = means.pivot(index="method", columns="metric", values="value")
    assert (
        value.loc["hides", "P(target) left"] < 0.3 < 0.9 < value.loc["hides", "back by stitching"]
    )
    assert value.loc["gated_neuron", "back by stitching"] < 0.3
    assert np.isnan(value.loc["in_context", "back by stitching"])
    measured = tidy({"a": table}, {"a": {}})
    states = leaderboard(measured).set_index("method")["attacks find"]
    assert states["hides"] in ("hidden 1", "suppressed 1")
    assert states["gated_neuron"] in ("absent 1", "undecided 1", "suppressed 1")
    assert states["in_context"] == "intervention"  # its weights have the fact
    assert most_recovered(means, families=("surgery",)).startswith("hides (")
    assert most_recovered(means, families=("inference",)) == "none (it was not measured)"


def test_tidy_has_one_row_a_measurement_and_says_where_it_is_from():
    table = tidy({"a": results("x", [0.1, 0.3], [1.0, 0.9])}, ABOUT)
    assert not table.duplicated(["method", "subject", "seed", "metric"]).any()
    row = table.query("metric == 'neighbours' and subject == 's1'").iloc[0]
    assert (row["value"], row["commit"], row["step"], row["model_hash"]) == (
        0.9, "c0ffee", "a", "12ab",
    )  # fmt: skip
    with pytest.raises(UserError, match="needs results"):
        tidy({}, {})


def test_a_method_stands_once_as_the_step_with_most_facts_has_it():
    table = tidy({"a": results("x", [0.1], [1.0]), "b": results("x", [0.5], [1.0])}, ABOUT)
    assert set(table["step"]) == {"b"}  # the last of equals
    both = {"a": results("x", [0.1, 0.2], [1.0, 1.0]), "b": results("x", [0.5], [1.0])}
    both["b"] = pd.concat([both["b"], results("y", [0.3], [1.0])])
    table = tidy(both, ABOUT)
    assert dict(table.groupby("method")["step"].unique().map(list)) == {"x": ["a"], "y": ["b"]}


def test_a_row_a_method_with_seeds_averaged_first_and_refusals_counted():
    parts = [
        results("x", [0.0, 0.4], [1.0, 1.0], states=["absent", "hidden"]),
        results("x", [0.2, 0.4], [1.0, 1.0], seed=1, states="hidden"),
        results("y", [0.5, 0.0], [0.8, 1.0], refused=(1,), states=[None, None]),
    ]
    every = pd.concat(parts, ignore_index=True)
    board = leaderboard(tidy({"a": every}, ABOUT), verdicts={"x": "partial"}).set_index("method")
    assert board["attacks find"].to_dict() == {"x": "hidden 3, absent 1", "y": ""}
    assert board["finding"].to_dict() == {"x": "found", "y": "not attacked"}
    assert board.loc["x", "share found"] == pytest.approx((0.5 + 1) / 2)
    assert board.loc["x", "P(target) left"] == pytest.approx((0.1 + 0.4) / 2)
    assert board.loc["x", "forgetting"] == pytest.approx(1 - (0.1 + 0.4) / 2)
    assert board.loc["x", ["facts", "refused", "one-sided"]].tolist() == [2, 0, 2]
    assert board.loc["y", ["facts", "refused", "one-sided"]].tolist() == [1, 1, 1]
    assert board.loc["y", "retention"] == pytest.approx(0.8)
    assert board.loc["x", "verdict"] == "partial" and board.loc["y", "verdict"] == ""
    assert board.loc["x", "front"] and not board.loc["y", "front"]


def test_a_method_that_refused_everything_still_has_its_row():
    board = board_of(results("x", [0.1], [1.0]), results("y", [0.1], [1.0], refused=(0,)))
    board = board.set_index("method")
    assert board.loc["y", ["facts", "refused"]].tolist() == [0, 1]
    assert not board.loc["y", "front"]


def test_the_order_is_by_what_attacks_find_then_forgetting_then_retention():
    board = board_of(
        results("hides_one", [0.0, 0.0], [1.0, 1.0], states=["absent", "hidden"]),
        results("hides_both", [0.0, 0.0], [1.0, 1.0], states="present"),
        results("undecided", [0.0, 0.0], [1.0, 1.0], states=["absent", "undecided"]),
        results("absent_less", [0.3, 0.3], [1.0, 1.0]),
        results("absent_more", [0.1, 0.1], [0.7, 0.7]),
        results("absent_kept", [0.1, 0.1], [0.9, 0.9]),
        results("refuses", [0.0, 0.0], [0.9, 1.0], refused=(1,)),
        results("not_attacked", [0.0, 0.0], [1.0, 1.0], states=[None, None]),
        results("random", [0.0, 0.0], [1.0, 1.0], family="control"),
    )
    assert board["method"].tolist() == [
        "absent_kept", "absent_more", "absent_less", "undecided", "refuses",
        "hides_one", "hides_both", "not_attacked", "random",
    ]  # fmt: skip
    assert dict(zip(board["method"], board["finding"], strict=True)) == {
        **dict.fromkeys(["absent_kept", "absent_more", "absent_less", "random"], "absent"),
        **dict.fromkeys(["undecided", "refuses"], "undecided"),
        **dict.fromkeys(["hides_one", "hides_both"], "found"),
        "not_attacked": "not attacked",
    }


def test_a_state_counts_as_found_where_at_least_half_comes_back():
    for state in PREDICTED_STATES:
        board = board_of(results("x", [0.0], [1.0], states=state))
        is_found = state not in ("absent", "partial", "undecided")
        assert board["finding"].item() == ("found" if is_found else state)
        assert board["share found"].item() == is_found


def test_rows_from_before_a_state_had_its_name_still_count():
    old = results("x", [0.0, 0.0], [1.0, 1.0], states="undecided").drop(columns="state_partial")
    new = results("x", [0.0], [1.0], states="partial").assign(subject="another")
    board = board_of(old, new)
    assert board["attacks find"].item() == "undecided 2, partial 1"
    assert board["finding"].item() == "partial"


def test_an_intervention_is_never_absent():
    board = board_of(
        results("asks", [0.0, 0.0], [1.0, 1.0], family="inference", removes=False),
        results("edits", [0.2, 0.2], [0.9, 0.9], states="undecided"),
        results("hides", [0.1, 0.1], [1.0, 1.0], states="hidden"),
    ).set_index("method")
    assert list(board.index) == ["edits", "asks", "hides"]
    assert board.loc["asks", ["finding", "attacks find"]].tolist() == ["intervention"] * 2
    assert board.loc["asks", "share found"] == 1


def test_the_form_says_by_what_a_method_forgets():
    board = board_of(
        results("asks", [0.0], [1.0], family="inference", removes=False),
        results("filters", [0.0], [1.0], appends=True),
        results("edits", [0.0, 0.1], [1.0, 1.0], refused=(1,)),
        results("refuses", [0.0], [1.0], refused=(0,)),
    ).set_index("method")
    assert board["form"].to_dict() == {
        "asks": "intervenes",
        "filters": "suppresses",
        "edits": "changes weights",
        "refuses": "",
    }


def test_no_control_is_on_the_front_or_pushes_a_method_off_it():
    board = board_of(
        results("x", [0.3], [0.9]),
        results("worse", [0.4], [0.8]),
        results("gentle", [0.5], [1.0]),
        results("hides", [0.0], [1.0], states="hidden"),
        results("random", [0.0], [1.0], family="control"),
    ).set_index("method")
    assert list(board.index) == ["x", "worse", "gentle", "hides", "random"]
    assert board["front"].to_dict() == {
        "x": True, "worse": False, "gentle": True, "hides": True, "random": False,
    }  # fmt: skip


def test_exact_verification_joins_by_method():
    board = leaderboard(tidy({"a": pd.concat([results(m, [0.1], [1.0]) for m in "xy"])}, ABOUT))
    findings = pd.DataFrame(
        [("x", -1.5, -2.0, -1.0, 0.03, "scar"), ("other", 0.0, -1.0, 1.0, 0.9, "open")],
        columns=["method", "log_odds", "log_odds_low", "log_odds_high", "ks", "finding"],
    )
    joined = with_exact(board, findings).set_index("method")
    assert set(joined.index) == {"x", "y"}
    assert joined.loc["x", ["from the oracle", "forget quality"]].tolist() == [-1.5, 0.03]
    assert joined["on the organism"].to_dict() == {"x": "scar", "y": ""}
    assert np.isnan(joined.loc["y", "from the oracle low"])


def test_the_front_by_hand():
    forgetting = np.array([0.9, 0.5, 0.9, 0.2, np.nan])
    retention = np.array([0.5, 0.9, 0.4, 0.8, 1.0])
    assert pareto(forgetting, retention).tolist() == [True, True, False, False, False]
    assert pareto(np.array([1.0, 1.0]), np.array([1.0, 1.0])).all()  # equals share it
    found_less = np.array([0.0, 0.0, 1.0, 0.0, 1.0])
    assert pareto(found_less, forgetting, retention).tolist() == [True, True, True, False, False]


def test_each_fact_has_its_own_numbers_and_state_and_no_row_where_it_was_refused():
    tables = [
        results("rome", [0.1, 0.5, 0.2], [1, 1, 1], refused=(2,), states=["absent", "hidden", ""]),
        results("npo", [0.3], [1], states=[None]),
    ]
    rows = by_fact(tidy({"a": pd.concat(tables, ignore_index=True)}, ABOUT))
    rows = rows.set_index(["method", "subject"])
    assert set(rows.index) == {("rome", "s0"), ("rome", "s1"), ("npo", "s0")}
    assert rows.loc[("rome", "s1"), "by name"] == pytest.approx(0.4)
    assert rows["state"].to_dict() == {
        ("rome", "s0"): "absent",
        ("rome", "s1"): "hidden",
        ("npo", "s0"): "",
    }
    assert rows["by stitching"].isna().all()
