"""Linearizations: derivatives of log-odds, whole answers, and the same as weights."""

from dataclasses import replace

import pytest
import torch
from small_constraints import constraints_of
from tiny_models import FAMILIES

from helpers.forward.activations import cache_activations
from helpers.forward.scoring import answer_logprobs
from helpers.methods import unlearn
from helpers.methods.fitting.edit_constraint import EditConstraint, LensReading
from helpers.methods.fitting.linearization import answer_logodds, linearize
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of, final_norm, unembed


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
    torch.testing.assert_close(linearization.predicted_change(delta), slope, rtol=3e-2, atol=2e-3)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_left_out_run_as_if_their_matrix_were_zero(tiny_model, family):
    """Alone and in one batch with the whole model; below, at and above the edited layer."""
    model, constraints = tiny_model(family), constraints_of()
    mlps = [layer.mlp for layer in architecture_of(model).layers]
    cut = [replace(c, left_out=out) for out in ((0,), (1, 2)) for c in constraints]
    mixed = linearize(model, [*constraints, *cut], layers=(0,))
    torch.testing.assert_close(
        mixed.logodds, answer_logodds(model, [*constraints, *cut], layers=(0,))
    )
    n = len(constraints)
    plain = linearize(model, constraints, layers=(0,))
    torch.testing.assert_close(mixed.logodds[:n], plain.logodds, rtol=1e-4, atol=1e-5)
    for k, out in enumerate(((0,), (1, 2))):
        with subtracted(model, {i: mlps[i].W_out().detach().clone() for i in out}):
            expected = linearize(model, constraints, layers=(0,)).logodds
        torch.testing.assert_close(
            mixed.logodds[(k + 1) * n : (k + 2) * n], expected, rtol=1e-4, atol=1e-5
        )
    of_layer_0 = (mixed.constraint_index >= n) & (mixed.constraint_index < 2 * n)
    assert not mixed.keys[0][of_layer_0].any()  # no change of a layer that is left out helps
    assert mixed.keys[0][~of_layer_0].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_neurons_are_at_zero_for_the_trial_edit_too(tiny_model, family):
    model, constraints = tiny_model(family), constraints_of()
    arch = architecture_of(model)
    neurons = ((0, 3), (2, 1), (2, 5))
    torch.manual_seed(0)
    delta = {0: 0.1 * torch.randn(arch.d_model, arch.d_mlp)}
    cut = [replace(c, cut_neurons=neurons) for c in constraints]
    found = answer_logodds(
        model, [*constraints, *cut], layers=(0,), edit_output=lambda i, x, h: h @ delta[i].T
    )
    columns = {i: torch.zeros(arch.d_model, arch.d_mlp) for i in (0, 2)}
    for i, n in neurons:
        columns[i][:, n] = arch.layers[i].mlp.W_out().detach()[:, n]
    delta[0][:, 3] = 0
    with subtracted(model, columns):
        expected = answer_logodds(
            model, constraints, layers=(0,), edit_output=lambda i, x, h: h @ delta[i].T
        )
    torch.testing.assert_close(found[len(cut) :], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lens_reads_the_answer_inside_the_model(tiny_model, family):
    """Its value is the logit lens's, and its linearization the derivative."""
    model, (first, *others) = tiny_model(family), constraints_of()
    arch = architecture_of(model)
    lens = LensReading(layer=1, position=2, against=(7, 9))
    read = replace(first, lens=lens)
    constraints = [first, read, *others]
    linearization = linearize(model, constraints, layers=(0, 2))
    states = cache_activations(model, [first.ids], sites=["residual"], layers=[1], positions=[[2]])[
        "residual", 1
    ]
    logits = unembed(model, final_norm(model, states.to(arch.head.weight)))[0].float()
    assert float(linearization.logodds[1]) == pytest.approx(
        float(logits[20] - logits[[7, 9]].mean()), rel=1e-4, abs=1e-5
    )
    plain = linearize(model, [first, *others], layers=(0, 2)).logodds
    torch.testing.assert_close(linearization.logodds[[0, 2, 3]], plain, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    delta = {i: torch.randn(arch.d_model, arch.d_mlp) for i in (0, 2)}
    plus, minus = (
        answer_logodds(
            model, constraints, layers=(0, 2), edit_output=lambda i, x, h, e=e: e * (h @ delta[i].T)
        )
        for e in (1e-3, -1e-3)
    )
    slope = (plus - minus) / 2e-3
    torch.testing.assert_close(linearization.predicted_change(delta), slope, rtol=3e-2, atol=3e-3)
    own = linearization.constraint_index == 1
    assert not linearization.gradients[2][own].any()  # the layer lies above the reading


def test_small_rows_are_left_out_by_constraint(tiny_model):
    model, constraints = tiny_model(), constraints_of()
    whole = linearize(model, constraints, layers=(0, 2))
    assert len(whole.without_small_rows(0.0).constraint_index) == len(whole.constraint_index)
    pruned = whole.without_small_rows(0.5)
    assert set(pruned.constraint_index.tolist()) == set(range(len(constraints)))
    assert len(pruned.constraint_index) < len(whole.constraint_index)
    both = pruned.followed_by(whole)
    assert both.logodds.tolist() == [*whole.logodds.tolist()] * 2
    n = len(pruned.constraint_index)
    assert torch.equal(both.constraint_index[n:], whole.constraint_index + len(constraints))
    assert torch.equal(both.keys[2][:n], pruned.keys[2])
    assert torch.equal(both.gradients[0][n:], whole.gradients[0])


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
