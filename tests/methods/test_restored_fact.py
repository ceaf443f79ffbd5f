"""Undo of one fact of several: that one is back, the others stay removed."""

import numpy as np
import pytest

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model, unlearn, without_fact
from helpers.requests import entity, pair_list


def probabilities(model, pairs):
    return np.array([answer_probability(model, p.prompts("heldout")).mean() for p in pairs])


def check_undo(model, request, method):
    """Forget all, take the first back: its probability is back, that of the others is not."""
    before = probabilities(model, request.pairs)
    edit = unlearn(model, request, method)
    fact, *others = request.pairs
    with edit.applied(model):
        removed = probabilities(model, request.pairs)
        restored = without_fact(model, edit, request, fact)  # whatever the model carries now
    with restored.applied(model):
        after = probabilities(model, request.pairs)
    assert (removed < 0.3 * before).all()
    assert after[0] > 0.9 * before[0] and (after[1:] < 0.3 * before[1:]).all()
    assert (restored.method, restored.seed) == (edit.method, edit.seed)
    assert restored.hyperparameters == edit.hyperparameters
    assert restored.pair["target"] == others[0].target
    with base_model(model):
        assert probabilities(model, request.pairs) == pytest.approx(before)


def test_the_fact_is_back_and_the_others_stay_removed(knowing):
    capitals = [ConceptPair(s, t) for s, t in (("France", "Paris"), ("Japan", "Tokyo"))]
    check_undo(knowing(), pair_list("capitals", capitals), "gated_neuron")


@pytest.mark.slow
def test_a_fact_of_an_entity_is_back_and_its_others_stay_removed(smollm):
    check_undo(smollm, entity("France", relations=("capital", "language")), "gated_neuron")


def test_what_cannot_be_taken_back_is_refused(knowing):
    model = knowing()
    request = entity("France", relations=("capital", "language"))
    capital, _ = request.pairs
    edit = unlearn(model, request, "gradient_ascent", steps=1)
    with pytest.raises(UserError, match=r"Japan.*is none of the facts of 'France'"):
        without_fact(model, edit, request, ConceptPair("Japan", "Tokyo"))
    with pytest.raises(UserError, match="the only fact of 'France': revert"):
        without_fact(model, edit, request.first(1), capital)
    single = unlearn(model, capital, "rome")
    with pytest.raises(UserError, match=r"'rome' is not solved for several .*gated_neuron"):
        without_fact(model, single, request, capital)
