"""The Levenberg-Marquardt fit: rejected steps, reused Jacobians, units that do not interfere."""

from dataclasses import replace

import torch

from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.methods.fitting import levenberg_marquardt
from helpers.methods.fitting.key_directions import KeyDirections
from helpers.methods.fitting.linearization import answer_logodds, linearize
from helpers.methods.fitting.units import GatedUnits
from helpers.models import architecture_of

SETTINGS = {"layers": (0, 1), "max_fpr": 0.1}


def test_a_step_that_leads_away_is_rejected(grown_model, own_pair):
    model = grown_model()
    usual = unlearn(model, own_pair, "gated_neuron", **SETTINGS)
    wild = unlearn(model, own_pair, "gated_neuron", step_sizes=(60.0, 60.0), **SETTINGS)
    assert 0 <= wild.delta.notes["relative_cost"] < 1
    assert 0 <= usual.delta.notes["relative_cost"] < 1
    before = answer_probability(model, own_pair.prompts("train"))
    with wild.applied(model):
        assert answer_probability(model, own_pair.prompts("train")).mean() < before.mean()


def test_the_jacobian_is_reused_after_a_step_that_leaves_little(grown_model, own_pair, monkeypatch):
    """It is computed anew where it turns out stale; the fit ends as near to its targets."""
    model, calls = grown_model(), []
    for function in (linearize, answer_logodds):

        def recorded(*args, function=function, **kwargs):
            calls.append("D" if function is linearize else "-")
            return function(*args, **kwargs)

        monkeypatch.setattr(levenberg_marquardt, function.__name__, recorded)
    sequences = []
    for ratio, second_step in ((0.0, 0.8), (0.1, 0.8), (0.3, 0.1)):
        calls.clear()
        edit = unlearn(
            model,
            own_pair,
            "gated_neuron",
            target_prob=0.01,
            step_sizes=(0.5, second_step, 1.0, 1.0),
            rtol=1e-5,
            jacobian_reuse_ratio=ratio,
            **SETTINGS,
        )
        assert edit.delta.notes["relative_cost"] <= 1e-5
        sequences.append("".join(calls))
    never, default, stale = sequences
    assert "-" not in never and default.count("D") < never.count("D")
    assert "-D" in stale  # a tenth of the way leaves more than that


def test_units_of_several_pairs_are_fitted_as_one_system(grown_model, own_pair, monkeypatch):
    model = grown_model()
    pairs = [own_pair, replace(own_pair, subject="w41", target="w23")]
    # two steps: rounding adds up over many
    settings = {**SETTINGS, "step_sizes": (0.3, 0.3), "max_iterations": 3}
    apart = unlearn(model, pairs, "gated_neuron", **settings).delta.changes
    # one block: each unit's part in each constraint, most of them zero
    monkeypatch.setattr(GatedUnits, "gram_blocks", KeyDirections.gram_blocks)
    together = unlearn(model, pairs, "gated_neuron", **settings).delta.changes
    assert len(apart[architecture_of(model).layers[0].mlp.out_name].appended.T) >= 2
    for name, change in apart.items():
        torch.testing.assert_close(change.appended, together[name].appended, rtol=1e-4, atol=1e-6)
