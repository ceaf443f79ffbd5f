"""Two-sided forgetting: by hand, and its controls on a model that knows some facts."""

import numpy as np
import pytest

from helpers.evaluation.forgetting import (
    ASSOCIATED,
    NO_REFERENCE,
    UNRELATED,
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

CONTROL, BEFORE = 0.01, 0.6


def probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(log_odds)))


def forgetting(after) -> list[float]:
    """Forgetting of a target at P = .6 before, with controls at .01."""
    return two_sided_forgetting(np.array(after), BEFORE, CONTROL).tolist()


def own_relation(subject: str, target: str) -> ConceptPair:
    """Make a pair in a relation of one's own, worded as that of capitals."""
    return ConceptPair(subject, target, "own", templates=RELATIONS["capital"].templates)


def test_forgetting_by_hand():
    level = np.log(0.01 / 0.99)
    margin, before = np.log(10), np.log(0.6 / 0.4) - level - np.log(10)
    assert forgetting([BEFORE, CONTROL]) == pytest.approx([0, 1])
    within = probability([level - 0.99 * margin, level + 0.99 * margin])
    assert forgetting(within) == pytest.approx([1, 1])
    beyond = probability([level - margin - 1, level + margin + 1])
    assert forgetting(beyond) == pytest.approx([1 - 1 / before, 1 - 1 / before])
    assert forgetting([0.9, 1e-9]) == [0, 0]  # further away than before, above or below


def test_forgetting_falls_with_the_distance_on_each_side():
    above = forgetting(np.linspace(0.1, 0.6, 9))
    below = forgetting(probability(np.linspace(-7, -9, 9)))
    assert (np.diff(above) < 0).all() and (np.diff(below) < 0).all()


def test_associated_controls_are_the_reference(knowing):
    model, pair = knowing(), ConceptPair("France", "Paris")
    columns = reference_columns(model, pair, split="dev", seed=0)
    assert columns["reference"] == ASSOCIATED
    assert (
        0 < columns["control_probability"] < answer_probability(model, pair.prompts("dev")).mean()
    )


def test_the_level_is_the_mean_over_controls(knowing, monkeypatch):
    model, pair = knowing(), ConceptPair("France", "Paris")
    controls = [
        ConceptPair("France", name, "capital", (), pair.templates)
        for name in associated_targets(pair)[:2]
    ]
    monkeypatch.setattr(
        "helpers.evaluation.forgetting.associated_facts", lambda *args, **options: controls
    )
    levels = [answer_probability(model, c.prompts("heldout")).mean() for c in controls]
    columns = reference_columns(model, pair, split="heldout", seed=0)
    assert columns["control_probability"] == pytest.approx(sum(levels) / 2)


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
    assert np.isnan(columns["control_probability"])


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
    assert scar["paraphrases"] < level["control_probability"] / 10
    assert scar["forgetting"] < 0.5 < 0.9 < level["forgetting"]
