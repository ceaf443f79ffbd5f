"""Two-sided forgetting: by hand, and its controls on a model that knows some facts."""

import numpy as np
import pytest

from helpers.evaluation.forgetting import (
    ASSOCIATED,
    NO_REFERENCE,
    UNRELATED,
    mean_log_odds,
    reference_columns,
    two_sided_forgetting,
)
from helpers.evaluation.tradeoff import EvalConfig, tradeoff
from helpers.facts import ConceptPair
from helpers.facts.associated import associated_targets
from helpers.facts.relations import RELATIONS
from helpers.forward.scoring import answer_probability
from helpers.methods import METHODS
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.methods.registry import Hyperparameters, Method


def forgetting(after: list[float]) -> list[float]:
    """Forgetting of a target at log-odds 2 before, with controls at −5 ± 1."""
    return two_sided_forgetting(np.array(after), 2.0, -5.0, 1.0).tolist()


def own_relation(subject: str, target: str) -> ConceptPair:
    """Make a pair in a relation of one's own, worded as that of capitals."""
    return ConceptPair(subject, target, "own", templates=RELATIONS["capital"].templates)


def test_forgetting_by_hand():
    # d(before) = |2 − (−5)| − 1 = 6.
    assert forgetting([2.0, -5.0, -4.0, -6.0]) == [0, 1, 1, 1]
    assert forgetting([-1.0, -9.0]) == pytest.approx([1 - 3 / 6, 1 - 3 / 6])
    assert forgetting([5.0, -20.0]) == [0, 0]  # further away than before, above or below


def test_forgetting_falls_with_the_distance_on_each_side():
    above, below = forgetting(np.linspace(-4, 2, 9)), forgetting(np.linspace(-6, -12, 9))
    assert (np.diff(above) < 0).all() and (np.diff(below) < 0).all()


def test_associated_controls_are_the_reference(knowing):
    model, pair = knowing(), ConceptPair("France", "Paris")
    columns = reference_columns(model, pair, split="dev", seed=0)
    assert columns["reference"] == ASSOCIATED
    prompts = pair.prompts("dev")
    p = answer_probability(model, prompts).clip(1e-9, 1 - 1e-9)
    assert columns["log_odds_before"] == pytest.approx(np.log(p / (1 - p)).mean())
    assert columns["log_odds_before"] == pytest.approx(mean_log_odds(model, prompts))
    assert columns["control_log_odds"] + columns["control_sd"] < columns["log_odds_before"]


def test_the_mean_and_deviation_are_over_controls(knowing, monkeypatch):
    model, pair = knowing(), ConceptPair("France", "Paris")
    controls = [
        ConceptPair("France", name, "capital", (), pair.templates)
        for name in associated_targets(pair)[:2]
    ]
    monkeypatch.setattr(
        "helpers.evaluation.forgetting.associated_facts", lambda *args, **options: controls
    )
    levels = [mean_log_odds(model, control.prompts("heldout")) for control in controls]
    columns = reference_columns(model, pair, split="heldout", seed=0)
    assert columns["control_log_odds"] == pytest.approx(sum(levels) / 2)
    assert columns["control_sd"] == pytest.approx(abs(levels[0] - levels[1]) / 2**0.5)


def test_without_associated_controls_unrelated_ones_take_their_place(knowing):
    pair = own_relation("France", "Paris")
    assert associated_targets(pair) == []  # nothing is known of a relation of one's own
    columns = reference_columns(knowing(), pair, split="dev", seed=0)
    assert columns["reference"] == UNRELATED


def test_an_original_that_does_not_know_the_fact_has_no_reference(knowing):
    columns = reference_columns(
        knowing(), ConceptPair("France", "Nowhere", "capital"), split="dev", seed=0
    )
    assert columns["reference"] == NO_REFERENCE
    assert np.isnan(columns["control_log_odds"]) and np.isfinite(columns["log_odds_before"])


def test_a_scar_is_no_forgetting(knowing, monkeypatch):
    def hides(model, pair, hparams, *, seed):
        return logit_suppression(model, pair).delta

    monkeypatch.setitem(METHODS, "hides", Method("hides", "surgery", hides, Hyperparameters))
    table = tradeoff(
        knowing(),
        [own_relation("Kenya", "Nairobi")],
        {"hides": {}},
        scales={"hides": (1.0, 4.0)},
        config=EvalConfig("dev", 2),
    )
    level, scar = table.iloc[0], table.iloc[1]
    assert level["reference"] == UNRELATED
    assert scar["paraphrases"] < level["paraphrases"] < 0.1 * level["paraphrases_before"]
    assert scar["log_odds"] < level["control_log_odds"] - level["control_sd"]
    assert scar["forgetting"] < 0.5 < 0.9 < level["forgetting"]
