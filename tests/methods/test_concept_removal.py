"""Removing a concept pair: its level, its windows of layers, and what it leaves alone."""

import numpy as np
import pytest
import torch

from helpers.facts import ConceptPair, facts
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.methods.fitting import association
from helpers.methods.fitting.adversarial_cuts import (
    all_windows,
    suppressing_neurons,
    weakest_windows,
)
from helpers.methods.fitting.constraints import forget_constraints
from helpers.methods.fitting.edit_constraint import at_all_positions
from helpers.methods.fitting.linearization import answer_logodds, linearize
from helpers.methods.snapshots import subtracted
from helpers.methods.surgery import concept_removal as module
from helpers.models import architecture_of, model_hash

SMALL = {"layers": (0, 1), "step_sizes": (0.2,) * 12, "n_tokens": 2000, "n_fisher_tokens": 256}


def probability_without(model, pair, windows):
    """P(target) with each window's W_out at zero: its worst."""
    layers = architecture_of(model).layers
    found = []
    for window in windows:
        with subtracted(model, {i: layers[i].mlp.W_out().detach().clone() for i in window}):
            found.append(answer_probability(model, pair.prompts("train")).mean())
    return max(found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_answer_comes_down_and_the_model_is_left_alone(grown_model, own_pair, family):
    model = grown_model(family)
    hash_before, prompts = model_hash(model), own_pair.prompts("train")
    before = answer_probability(model, prompts)
    goal = 0.7 * float(before.min())
    edit = unlearn(model, own_pair, "concept_removal", max_target_prob=goal, **SMALL)
    assert model_hash(model) == hash_before and not edit.delta.appends_neurons
    assert set(edit.delta.changes) == {
        architecture_of(model).layers[i].mlp.out_name for i in (0, 1)
    }
    with edit.applied(model):
        after = answer_probability(model, prompts)
    assert (after < 0.9 * before).all() and after.mean() < 1.25 * goal


def test_attacked_windows_of_layers_bring_less_back(grown_model, own_pair):
    model = grown_model()
    goal = 0.3 * float(answer_probability(model, own_pair.prompts("train")).min())
    windows = all_windows(architecture_of(model).n_layers, 0)
    left = {}
    for n_windows in (0, 3):
        edit = unlearn(
            model,
            own_pair,
            "concept_removal",
            max_target_prob=goal,
            min_target_prob=1e-6,
            n_windows=n_windows,
            every=1,
            **(SMALL | {"layers": range(architecture_of(model).n_layers)}),
        )
        with edit.applied(model):
            left[n_windows] = probability_without(model, own_pair, windows)
    assert left[3] < 0.8 * left[0]


def test_windows_are_the_weakest_and_do_not_overlap_in_a_width(grown_model, own_pair):
    model = grown_model()
    constraints = at_all_positions(forget_constraints(model, own_pair))
    no_edit = lambda layer, mlp_in, hidden: 0 * mlp_in  # noqa: E731
    chosen = weakest_windows(model, constraints, n=3, layers=[1], edit_output=no_edit)
    windows = all_windows(architecture_of(model).n_layers, 1)
    assert min(min(w) for w in windows) == 1 and set(chosen) <= set(windows)
    layers = architecture_of(model).layers
    means = {}
    for window in windows:
        with subtracted(model, {i: layers[i].mlp.W_out().detach().clone() for i in window}):
            logodds = answer_logodds(model, constraints, layers=[1])
        means[window] = float(logodds.sigmoid().mean())
    assert chosen[0] == max(windows, key=means.__getitem__)
    for a in chosen:
        assert not any(set(a) & set(b) for b in chosen if a != b and len(a) == len(b))


def test_the_level_is_what_other_associations_get(monkeypatch, tiny_model, own_pair):
    france = next(ConceptPair.of(f) for f in facts("capital") if f.subject == "France")
    asked = []

    def probability(model, prompts):
        asked.extend(prompts)
        return np.full(len(prompts), 0.25)

    monkeypatch.setattr(association, "answer_probability", probability)
    assert association.association_level(None, france, n=2) == 0.25
    assert {p.answers[0] for p in asked} == {" Lyon", " Marseille"}
    assert {str(p) for p in asked} == {str(p) for p in france.prompts("train")}
    monkeypatch.setattr(association, "associated_controls", lambda pair, n: [])
    assert association.association_level(None, own_pair, n=2) == float("inf")


def test_the_same_names_ask_for_what_must_stay():
    france = next(ConceptPair.of(f) for f in facts("capital") if f.subject == "France")
    prompts = module.subject_by_other_names([france])
    assert {p.relation for p in prompts} >= {"language", "currency", "continent"}
    assert not any(p.relation == "capital" for p in prompts)
    language = next(ConceptPair.of(f) for f in facts("language") if f.subject == "France")
    together = module.subject_by_other_names([france, language])
    assert not any(p.relation in ("capital", "language") for p in together)


def test_the_neurons_that_lower_the_answer_most_are_cut(grown_model, own_pair):
    model = grown_model()
    constraints = at_all_positions(forget_constraints(model, own_pair))
    linearization = linearize(model, constraints, layers=(0, 2))
    layers = architecture_of(model).layers
    W_out = {i: layers[i].mlp.W_out().detach().float() for i in (0, 2)}
    chosen = suppressing_neurons(linearization, W_out, n=5)
    effects = {}
    for i, W in W_out.items():
        for n in range(W.shape[1]):
            delta = torch.zeros_like(W)
            delta[:, n] = W[:, n]
            effects[i, n] = float(linearization.predicted_change({i: delta}).sum())
    assert list(chosen) == sorted(effects, key=effects.__getitem__)[:5]
    assert effects[chosen[0]] < 0
