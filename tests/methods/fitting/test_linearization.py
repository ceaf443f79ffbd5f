"""Linearizations: derivatives of log-odds, whole answers, and the same as weights."""

import pytest
import torch
from conftest import FAMILIES
from small_constraints import constraints_of

from helpers.forward.scoring import answer_logprobs
from helpers.methods import unlearn
from helpers.methods.fitting.linearization import EditConstraint, linearize
from helpers.models import architecture_of


def predicted_change(linearization, delta):
    """Change of each constraint's log-odds by ΔW, to first order."""
    total = torch.zeros(len(linearization.logodds))
    for i, change in delta.items():
        by_row = ((linearization.keys[i] @ change.T) * linearization.gradients[i]).sum(-1)
        total.index_add_(0, linearization.constraint_index, by_row)
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_a_linearization_is_the_derivative(tiny_model, family):
    model, constraints = tiny_model(family), constraints_of()
    arch = architecture_of(model)
    torch.manual_seed(0)
    delta = {i: torch.randn(arch.d_model, arch.d_mlp) for i in (0, 2)}
    linearization = linearize(model, constraints, layers=(0, 2))
    plus, minus = (
        linearize(
            model, constraints, layers=(0, 2), edit_output=lambda i, x, h, e=e: e * (h @ delta[i].T)
        ).logodds
        for e in (1e-3, -1e-3)
    )
    slope = (plus - minus) / 2e-3
    torch.testing.assert_close(predicted_change(linearization, delta), slope, rtol=3e-2, atol=2e-3)


def test_odds_are_the_whole_answers_and_sum_alternatives(tiny_model):
    model = tiny_model()
    prompt = "w1 w2 w3"
    ids = tuple(model.tokenizer(prompt).input_ids)
    first, second = (model.tokenizer(w).input_ids[0] for w in ("w7", "w9"))
    whole = EditConstraint((*ids, first), ((2, (first,)), (3, (second,))), (0,))
    either = EditConstraint(ids, ((2, (first, second)),), (0,))
    logodds = linearize(model, [whole, either], layers=[0]).logodds
    one, two, both = answer_logprobs(model, [prompt] * 3, [" w7", " w9", " w7 w9"])
    expected = torch.tensor([both, torch.logaddexp(*torch.tensor([one, two]))], dtype=torch.float32)
    odds = expected - torch.log1p(-expected.exp())
    torch.testing.assert_close(logodds, odds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_weights_do_what_the_intervention_does(grown_model, own_pair, family):
    model = grown_model(family)
    edit = unlearn(
        model, own_pair, "tangent_kernel", layers=(0, 2), target_prob=0.005, step_sizes=(0.3,)
    )
    layers, constraints = architecture_of(model).layers, constraints_of()
    delta = {i: edit.delta.changes[layers[i].mlp.out_name].matrix() for i in (0, 2)}
    delta = {i: d.T if layers[i].mlp.transposed else d for i, d in delta.items()}
    intervened = linearize(
        model, constraints, layers=(0, 2), edit_output=lambda i, x, h: h @ delta[i].T
    )
    plain = linearize(model, constraints, layers=(0, 2))
    with edit.applied(model):
        folded = linearize(model, constraints, layers=(0, 2))
    torch.testing.assert_close(folded.logodds, intervened.logodds, rtol=1e-3, atol=1e-4)
    assert (folded.logodds - plain.logodds).abs().max() > 1e-3
