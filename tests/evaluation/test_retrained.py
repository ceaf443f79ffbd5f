"""Comparison with a retrained model: a copy of either reference is nearer to that one."""

import numpy as np
import pytest
import torch

from helpers.evaluation.metrics.depth_score import depth_against_retrained
from helpers.evaluation.metrics.prediction_distance import js_divergence, log_odds
from helpers.evaluation.retrained import compare_with_retrained
from helpers.facts import ConceptPair
from helpers.methods import Change, Edit, WeightEdit
from helpers.models import architecture_of, model_hash

KENYA = ConceptPair("Kenya", "Nairobi")
RELATIVE = ["log-odds of the target", "Jensen–Shannon divergence"]


def random_edit(model, *, scale: float, seed: int = 0) -> Edit:
    """Change the first MLP's output by noise of a given size."""
    name = architecture_of(model).layers[0].mlp.out_name
    weight = model._module.get_parameter(name)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    delta = WeightEdit.of(model._module, {name: Change(dense=scale * noise)})
    return Edit("made", {"subject": "Kenya"}, delta, {}, 0, 0.0, model_hash(model))


def test_a_copy_is_nearer_to_its_model(knowing):
    model = knowing()
    before = model_hash(model)
    retrained = random_edit(model, scale=0.5)
    copies = {
        "retrained": random_edit(model, scale=0.5),
        "original": random_edit(model, scale=1e-6, seed=1),
    }
    tables = {
        name: compare_with_retrained(model, KENYA, edit, retrained).set_index("measure")
        for name, edit in copies.items()
    }
    assert model_hash(model) == before
    for name, table in tables.items():
        assert (table.loc[RELATIVE, "nearer_to"] == name).all()
        assert (table.loc[RELATIVE, "n"] == len(KENYA.prompts("heldout"))).all()
    assert tables["retrained"].loc["forget quality", "value"] == pytest.approx(1.0)
    assert tables["original"].loc["forget quality", "value"] < 0.5
    assert tables["retrained"].loc["unlearning depth", "value"] == pytest.approx(1.0, abs=1e-5)
    assert tables["original"].loc["unlearning depth", "value"] == pytest.approx(0.0, abs=1e-3)


def test_one_prompt_shows_nothing(tiny_model, own_pair):
    model = tiny_model()
    edits = [random_edit(model, scale=scale) for scale in (0.5, 0.4)]
    table = compare_with_retrained(model, own_pair, *edits).set_index("measure")
    assert (table.loc[RELATIVE, "nearer_to"] == "not shown").all()
    assert table.loc[RELATIVE, ["low", "high"]].isna().all(axis=None)


def test_depth_uses_the_retrained_models_states(knowing):
    model = knowing()
    retrained = random_edit(model, scale=0.5)
    unchanged = depth_against_retrained(model, KENYA, retrained, max_prompts=2)
    assert unchanged.reference.shape == (2, 3) and unchanged.reference.max() > 0.05
    assert abs(unchanged.unlearned).max() < 1e-5
    with retrained.applied(model):
        same = depth_against_retrained(model, KENYA, retrained, max_prompts=2)
    assert same.unlearned == pytest.approx(same.reference, abs=1e-6)


def test_distances_of_hand_worked_predictions():
    assert log_odds(np.log([0.5, 0.25])) == pytest.approx([0, -np.log(3)])
    assert np.isfinite(log_odds(np.array([0.0, -800.0]))).all()
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).clamp_min(1e-30).log()
    q = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).clamp_min(1e-30).log()
    assert js_divergence(p, q).tolist() == pytest.approx([np.log(2), 0.0], abs=1e-6)
