"""Edits scaled to the same disruption of ordinary text."""

import pytest
import torch

from helpers.errors import UserError
from helpers.evaluation.equal_disruption import MAX_SCALE, TOLERANCE, scale_to_kl
from helpers.facts import ConceptPair
from helpers.facts.corpus import corpus_tokens
from helpers.methods import unlearn
from helpers.models import model_hash


@pytest.fixture
def edited(knowing):
    model = knowing()
    edit = unlearn(model, ConceptPair("Kenya", "Nairobi"), "mean_difference", layers=(1,))
    return model, edit, corpus_tokens(model.tokenizer, seq_len=32, n_tokens=512)


def test_an_edit_is_scaled_to_the_budget(edited):
    model, edit, tokens = edited
    start = model_hash(model)
    at_one = scale_to_kl(model, edit, 1.0, tokens=tokens)  # more than it does at MAX_SCALE
    assert at_one.scale == MAX_SCALE and not at_one.meets_budget
    for budget in (at_one.kl / 4, at_one.kl / 100):
        scaled = scale_to_kl(model, edit, budget, tokens=tokens)
        assert scaled.meets_budget and scaled.kl == pytest.approx(budget, rel=TOLERANCE)
        for name, change in edit.delta.changes.items():
            left = scaled.edit.delta.changes[name].left
            assert torch.allclose(left, scaled.scale * change.left)
    assert model_hash(model) == start


def test_a_budget_has_to_be_positive_and_an_edit_to_change_weights(edited):
    model, edit, tokens = edited
    with pytest.raises(UserError, match="give a positive one"):
        scale_to_kl(model, edit, 0.0, tokens=tokens)
    intervention = unlearn(model, ConceptPair("Kenya", "Nairobi"), "in_context")
    with pytest.raises(UserError, match="changes no weight"):
        scale_to_kl(model, intervention, 0.1, tokens=tokens)
