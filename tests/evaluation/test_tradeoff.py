"""Forgetting against collateral: scales, choice of a scale, summary over facts."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_edits import own_pair as baseline_pair
from small_edits import small_world  # noqa: F401

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import ControlsError
from helpers.evaluation.batch_editing import STATES, together
from helpers.evaluation.evaluation_pairs import evaluation_pairs, known_pairs
from helpers.evaluation.method_choice import editing_methods
from helpers.evaluation.scaling import parse_scales, scale_edit
from helpers.evaluation.tradeoff import EvalConfig, tradeoff
from helpers.evaluation.tradeoff_summary import add_summary_columns, best_scales, summary
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods import METHODS, Change, Edit, WeightEdit, unlearn
from helpers.models import architecture_of, model_hash
from helpers.sae import SAEConfig, build, save_sae


def test_scales_are_positive_numbers():
    assert parse_scales("2, 0.5,1") == [0.5, 1.0, 2.0]
    for bad in ("", "a, 1", "0, 1"):
        with pytest.raises(UserError, match="separated by commas"):
            parse_scales(bad)


def test_a_run_reports_on_its_own_fact_before_held_out_ones(knowing):
    model, book = knowing(), ConceptPair("France", "Paris")
    held = known_pairs(model, "capital", "heldout", n=9)
    assert evaluation_pairs(model, book, n=2) == held[:2]  # methods were built on the book's
    own = ConceptPair("Japan", "Tokyo")
    assert evaluation_pairs(model, own, n=3) == [own, *held[:2]]
    assert evaluation_pairs(model, held[0], n=2) == held[:2]  # once
    assert evaluation_pairs(model, own, n=1) == [own]


def test_half_of_an_edit_is_half_of_its_change(tiny_model):
    model, pair = tiny_model(), baseline_pair()
    made = unlearn(model, pair, "mean_difference", layers=(1,))
    half = scale_edit(model, made, 0.5)
    for name, change in made.delta.changes.items():
        assert torch.allclose(half.delta.changes[name].matrix(), 0.5 * change.matrix())
    before = model_hash(model)
    with half.applied(model):
        assert model_hash(model) != before
    assert model_hash(model) == before


def test_appended_neurons_keep_their_keys(tiny_model):
    model = tiny_model()
    mlp = architecture_of(model).layers[0].mlp
    changes = {
        mlp.in_name: Change(appended=torch.ones(1, 16)),
        mlp.gate_name: Change(appended=torch.ones(1, 16)),
        mlp.out_name: Change(appended=torch.ones(16, 1), axis=1),
    }
    made = Edit("made", {}, WeightEdit.of(model._module, changes), {}, 0, 0.0, "")
    got = scale_edit(model, made, 0.25).delta.changes
    assert got[mlp.gate_name].appended.eq(1).all() and got[mlp.in_name].appended.eq(1).all()
    assert got[mlp.out_name].appended.eq(0.25).all()


def test_every_method_is_scored_and_a_refusal_is_kept(tiny_model, monkeypatch):
    model, pair = tiny_model(), baseline_pair()
    methods = {"needle": {"noise": 5.0}, "mean_difference": {"layers": (9,)}}
    options = {
        "scales": dict.fromkeys(methods, (0.5, 1.0)),
        "config": EvalConfig(n_neighbours=2),
        "seeds": [0, 1],
    }
    table = tradeoff(model, [pair], methods, **options)
    scored, refused = (table[table["method"] == m] for m in methods)
    assert list(scored["scale"]) == [0.5, 1.0, 0.5, 1.0] and list(scored["seed"]) == [0, 0, 1, 1]
    assert scored["paraphrases"].notna().all() and (scored["folding_gap"] < 1e-3).all()
    assert scored["reference"].notna().all()
    assert refused["refused"].str.contains("no layer 9").all()
    assert refused["forgetting"].isna().all()
    monkeypatch.setattr("helpers.evaluation.tradeoff.unlearn", None)  # all is in the cache
    again = tradeoff(model, [pair], methods, **options)
    pd.testing.assert_frame_equal(table, again)


def test_only_the_want_of_controls_leaves_the_attacks_out(tiny_model, monkeypatch):
    def refused(error):
        def battery(*args, **options):
            raise error

        monkeypatch.setattr("helpers.evaluation.tradeoff.battery", battery)
        return tradeoff(
            tiny_model(),
            [baseline_pair()],
            {"needle": {"noise": 5.0}},
            scales={"needle": (1.0,)},
            config=EvalConfig(n_neighbours=2, n_tokens=128),
        )

    with pytest.raises(UserError, match="disk is full"):  # and nothing is kept as if it were done
        refused(UserError("The disk is full."))
    table = refused(ControlsError("too few"))
    assert table["paraphrases"].notna().all() and "stitching" not in table


def scores(**columns) -> pd.DataFrame:
    table = pd.DataFrame({"paraphrases_before": 0.8} | columns)
    return table.assign(family=table.get("family", "surgery"))


def left(log_odds: list[float]) -> dict:
    """Columns of a target at log-odds 0 before, with controls at −5 − log 10: d(before) is 5."""
    level = -5 - np.log(10)
    return {
        "paraphrases": 1 / (1 + np.exp(-np.array(log_odds))),
        "paraphrases_before": [0.5] * len(log_odds),
        "control_probability": [1 / (1 + np.exp(-level))] * len(log_odds),
    }


def test_the_scale_with_the_best_score_is_chosen():
    table = add_summary_columns(
        scores(
            method=["a", "a", "a", "b", "b"],
            scale=[0.5, 1.0, 2.0, 1.0, 2.0],
            change_neighbours=[0.0, 0.05, 0.0, 0.0, 0.1],
            family=["surgery"] * 3 + ["control"] * 2,
            **left([-1.0, -4.5, -15.0, -0.1, -4.0]),
        )
    )
    # The scale 2 leaves the least probability and changes nothing else: it is a scar.
    assert table["forgetting"].round(6).tolist()[:3] == [0.2, 0.9, 0.0]
    assert table["one_sided"].eq(0).all()
    assert best_scales(table) == {"a": 1.0, "b": 1.0}  # a control keeps its size


def test_without_a_reference_forgetting_is_that_of_probability_and_says_so():
    columns = left([-4.5, -4.5, 1.0])
    columns["control_probability"][1:] = [float("nan")] * 2
    table = add_summary_columns(scores(method=["a"] * 3, scale=[1.0] * 3, **columns))
    assert table["forgetting"].tolist() == pytest.approx([0.9, 1 - 2 / (1 + np.exp(4.5)), 0.0])
    assert table["one_sided"].tolist() == [0, 1, 1]
    older = table.drop(columns=["control_probability"])  # a table of an older run
    assert add_summary_columns(older)["one_sided"].eq(1).all()


def test_retention_is_that_of_the_worst_group_and_a_rise_is_no_gain():
    groups = {
        "change_neighbours": [0.1, 0.1, 0.0],
        "change_same_subject": [0.4, None, 2.5],  # a fact that became 3.5 times as likely
        "neighbours": [0.9, 1.1, 1.0],
    }
    table = add_summary_columns(
        scores(method=["a"] * 3, scale=[1.0] * 3, paraphrases=[0.0, 0.0, 0.0], **groups)
    )
    assert table["retention"].tolist() == pytest.approx([0.6, 0.9, 0.0])
    assert table["score"].iloc[2] == 0


def test_summary_counts_facts_not_seeds():
    table = scores(
        method=["a"] * 4,
        subject=["x", "x", "y", "y"],
        paraphrases=[0.0, 0.4, 0.8, 0.8],
        neighbours=[1.0, 1.0, 0.5, 0.5],
        same_subject=[1.0, 1.0, None, None],
    )
    means = summary(table).set_index("metric")
    assert means.loc["P(target) left", "n"] == 2
    assert means.loc["P(target) left", "value"] == pytest.approx((0.25 + 1.0) / 2)
    assert means.loc["other facts kept", "n"] == 1
    assert "perplexity change" not in means.index


def test_the_list_of_methods_is_the_register(monkeypatch):
    chosen = editing_methods()
    assert {"rome", "neurons", "random_direction"} <= set(chosen)
    assert not {"pisces", "sae_direction", "sae_pair"} & set(chosen)  # no SAE was given
    monkeypatch.setitem(METHODS, "mine", METHODS["neurons"])
    assert "mine" in editing_methods()
    assert list(editing_methods("rome, needle")) == ["rome", "needle"]
    with pytest.raises(UserError, match="no method 'nothing'"):
        editing_methods("nothing")


def test_a_method_is_given_the_saes_of_the_first_of_its_sites(tmp_path):
    folders = {}
    for site in ("mlp", "mlp_in", "neurons"):
        folders[site] = str(tmp_path / site)
        save_sae(build(SAEConfig("topk", 8, 16, k=2, site=site)), folders[site])
    chosen = editing_methods("pisces, sae_direction, sae_pair", list(folders.values()))
    assert chosen["pisces"] == {"saes": (folders["mlp"],)}
    assert chosen["sae_direction"] == chosen["sae_pair"] == {"saes": (folders["mlp_in"],)}
    (only,) = editing_methods("sae_direction", [folders["mlp"]]).values()
    assert only == {"saes": (folders["mlp"],)}


def test_several_facts_are_forgotten_together_in_turn_and_one_comes_back(
    grown_model,
    own_pair,
):
    model = grown_model()
    pairs = [own_pair, ConceptPair("w41", "w21", "own", templates=own_pair.templates)]
    hyperparameters = {
        "layers": (0, 1),
        "max_fpr": 0.1,
        "step_sizes": (0.2,) * 6,
        "target_prob": 1e-4,
    }
    before = model_hash(model)
    table = together(model, pairs, "gated_neuron", split="train", **hyperparameters)
    assert model_hash(model) == before
    own = table.pivot(index="fact", columns="state", values="p")
    assert set(own.columns) == set(STATES) and list(own.index) == [str(p) for p in pairs]
    for state in ("solved together", "solved one by one"):
        assert (own[state] < 0.9 * own["original"]).all()
    alone = unlearn(model, pairs[1], "gated_neuron", **hyperparameters)
    with alone.applied(model):
        p = answer_probability(model, pairs[1].prompts("train")).mean()
    assert own["the first undone"].iloc[1] == pytest.approx(float(p), rel=1e-4)
    with pytest.raises(UserError, match="at least two"):
        together(model, pairs[:1], "gated_neuron")
    with pytest.raises(UserError, match=r"choose one of .*gated_neuron"):
        together(model, pairs, "rome")
