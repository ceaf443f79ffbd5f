"""Metrics of the metrics: known states are read as what they are, and intervals are over facts."""

import numpy as np
import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation.meta import meta_evaluation
from helpers.evaluation.meta.all_metrics import METRICS, compute_metrics
from helpers.evaluation.meta.meta_evaluation import Discrimination, auc_between, metric_aucs
from helpers.evaluation.metrics.depth_score import unlearning_depth
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.models import model_hash


def test_auc_by_hand():
    # of the nine pairs 3 > 1, 3 > 2, 2 > 1 and the ties 2 = 2, 1 = 1, 3 = 3: (3 + 3 / 2) / 9
    assert auc_between([1, 2, 3], [3, 2, 1]).value == 0.5
    assert auc_between([1, 2, 4], [3, 2, 1]).value == pytest.approx((1 / 2 + 3 / 2 + 3) / 9)
    apart = auc_between([4, 5, 6], [1, 2, 3])
    assert (apart.value, apart.low, apart.high, apart.n) == (1, 1, 1, 3)
    with pytest.raises(UserError, match="at least two facts"):
        auc_between([1], [2])


def test_the_interval_is_of_resampled_facts():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=12) + 1, rng.normal(size=12)
    got = auc_between(left, right, seed=1)
    found = []
    for _ in range(4000):
        i = rng.integers(12, size=12)
        found.append((left[i][:, None] > right[i]).mean())
    low, high = np.percentile(found, [2.5, 97.5])
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.03)


def test_findings_say_on_which_side_of_a_coin_the_interval_lies():
    rows = []
    for fact in range(8):
        for state, shift in (("present", 3), ("hidden", -3), ("absent", 0)):
            row = dict.fromkeys(METRICS, float(fact % 3)) | {"rank": fact / 8 + shift}
            rows.append({"fact": fact, "state": state, **row, "depth": np.nan})
    found = metric_aucs(pd.DataFrame(rows)).set_index(["metric", "state"])
    assert found.loc[("rank", "present"), "finding"] == Discrimination.DISCRIMINATES
    assert found.loc[("rank", "hidden"), "finding"] == Discrimination.INVERTED
    assert found.loc[("greedy", "hidden"), "finding"] == Discrimination.INCONCLUSIVE
    assert found.loc[("greedy", "hidden"), "value"] == 0.5
    assert "depth" not in found.index.get_level_values("metric")  # measured nowhere
    assert (found["n"] == 8).all()


def test_known_states_are_read_as_what_they_are(knowing, monkeypatch):
    model = knowing()
    start = model_hash(model)
    chosen = meta_evaluation.matched_pairs(model, "capital", n=4)
    assert len({f.subject for f, _ in chosen} | {s.subject for _, s in chosen}) == 8
    for fact, control in chosen:
        assert (fact.target, fact.relation) == (control.target, control.relation)
        own = [p for p in fact.prompts("train") if p.format == "completion"]
        assert answer_probability(model, own).mean() > 0.2
    table = meta_evaluation.evaluate_states(model, "capital", n=4, n_depth=0)
    assert model_hash(model) == start
    assert table.groupby("state").size().to_dict() == {"absent": 4, "hidden": 4, "present": 4}
    assert set(METRICS) < set(table.columns)
    found = metric_aucs(table).set_index(["metric", "state"])
    assert found.loc[("mean P(target)", "present"), "value"] == 1
    assert found.loc[("logit lens", "present"), "value"] > 0.8
    present, hidden = (table[table["state"] == s] for s in ("present", "hidden"))
    assert present["mean P(target)"].min() > 0.2 > hidden["mean P(target)"].max()
    monkeypatch.setattr(
        meta_evaluation, "evaluate_fact", pytest.fail
    )  # the second time it comes from the cache
    again = meta_evaluation.evaluate_states(model, "capital", n=4, n_depth=0)
    pd.testing.assert_frame_equal(again, table, check_like=True)


def test_a_hidden_fact_is_read_as_by_a_whole_pass(knowing, monkeypatch):
    """Readings from kept states are, bit for bit, readings without."""
    model = knowing()
    (fact, control), *_ = meta_evaluation.matched_pairs(model, "capital", n=2)
    edit = meta_evaluation.logit_suppression(model, fact)
    monkeypatch.setattr(meta_evaluation, "logit_suppression", lambda *_: edit)
    table = meta_evaluation.evaluate_fact(model, fact, control, depth_controls=[]).set_index(
        "state"
    )
    with edit.applied(model):
        direct = compute_metrics(model, fact)
    assert direct == {name: table.loc["hidden", name] for name in direct}


def test_depth_of_an_absent_fact_is_that_of_a_second_control(knowing):
    model, fact = knowing(), ConceptPair("Japan", "Tokyo")
    controls = [ConceptPair(s, "Tokyo") for s in ("Chad", "Togo", "Fiji")]
    depth = unlearning_depth(model, fact, controls, max_prompts=2)
    assert depth.score < 1e-5 and abs(depth.unlearned).max() < 1e-5  # nothing was changed
    absent = unlearning_depth(model, fact, controls, max_prompts=2, of_control=True)
    assert absent.unlearned.shape[0] == 2 and absent.score > 0.5
    with pytest.raises(UserError, match="as many tokens"):
        unlearning_depth(model, fact, controls[:1], of_control=True)


def test_without_facts_that_are_known_nothing_is_calibrated(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="at least two facts"):
        meta_evaluation.matched_pairs(tiny_model(), "capital", n=3)
