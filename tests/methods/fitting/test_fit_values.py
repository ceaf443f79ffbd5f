"""Edits with fitted values: what they reach, what they leave alone, in both parametrizations."""

import pytest
import torch
from tiny_models import TEMPLATES

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.prefix_cache import PrefixCache
from helpers.forward.scoring import answer_probability
from helpers.methods import METHODS, unlearn
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.key_directions import fit_key_directions
from helpers.methods.surgery.gated_neuron import fit_discriminant_units
from helpers.models import architecture_of, model_hash, torch_module

SETTINGS = {
    "tangent_kernel": ("tangent_kernel", {}),
    "append": ("gated_neuron", {"max_fpr": 0.1}),
    "low_rank": ("gated_neuron", {"max_fpr": 0.1, "parametrization": "low_rank"}),
}


@pytest.mark.parametrize(("method", "settings"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_answer_comes_down_and_the_model_is_left_alone(
    grown_model, own_pair, family, method, settings
):
    model = grown_model(family)
    hash_before = model_hash(model)
    prompts = own_pair.prompts("train")
    before = answer_probability(model, prompts)
    target_prob = 0.7 * float(before.min())
    edit = unlearn(
        model,
        own_pair,
        method,
        layers=(0, 1),
        target_prob=target_prob,
        step_sizes=(0.2,) * 12,
        **settings,
    )
    assert model_hash(model) == hash_before
    with edit.applied(model):
        after = answer_probability(model, prompts)
    assert (after < 0.9 * before).all() and after.mean() < 1.25 * target_prob


def test_low_rank_is_rank_one_a_key_that_averages_one_where_the_unit_is_active(
    grown_model, own_pair
):
    model = grown_model()
    hparams = UnitEditHparams(parametrization="low_rank", max_fpr=0.1)
    settings = {"layers": (0, 1), "max_fpr": 0.1}
    edit = unlearn(
        model, own_pair, "gated_neuron", parametrization="low_rank", step_sizes=(0.2,), **settings
    )
    layers = architecture_of(model).layers
    assert not edit.delta.appends_neurons
    assert set(edit.delta.changes) <= {layers[i].mlp.out_name for i in (0, 1)}
    assert all(c.rank == 1 for c in edit.delta.changes.values())
    units = fit_discriminant_units(model, [own_pair], hparams, layers=(0, 1), seed=0)
    directions = fit_key_directions(model, [own_pair], units, hparams)
    ids = [tuple(model.tokenizer(str(p)).input_ids) for p in own_pair.prompts("train")]
    for i, layer_directions in directions.items():
        mlp = layers[i].mlp
        x, k = cache_activations(
            model, ids, sites=["mlp_in", "neurons"], layers=[i], positions="all"
        ).values()
        a = units[i].fire(mlp, x).clamp_min(0)
        mean = float((layer_directions.fire(mlp, k) * a).sum() / a.sum())
        assert mean == pytest.approx(1, rel=1e-3)
    with pytest.raises(UserError, match="no parametrization 'both'"):
        unlearn(model, own_pair, "gated_neuron", parametrization="both", **settings)


def test_a_unit_that_is_not_active_changes_nothing(grown_model, own_pair):
    model = grown_model()
    edit = unlearn(model, own_pair, "gated_neuron", layers=(0,), target_prob=0.01)
    tokens = torch.randint(4, 44, (4, 12), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        clean = torch_module(model)(tokens).logits
        with edit.applied(model):
            edited = torch_module(model)(tokens).logits
    assert (clean - edited).abs().max() < 1e-3


def test_units_that_miss_most_prompts_are_refused_and_missed_ones_count_as_left(
    grown_model, own_pair, monkeypatch
):
    model = grown_model()
    whole = unlearn(model, own_pair, "gated_neuron", layers=(0, 1), max_fpr=0.1)
    missed = tuple(model.tokenizer(str(own_pair.prompts("train")[0])).input_ids)
    blind: list[tuple[int, ...]] = [missed]
    first_active = PrefixCache.first_active

    def sees(self, ids):
        return None if ids in blind else first_active(self, ids)

    monkeypatch.setattr(PrefixCache, "first_active", sees)
    partly = unlearn(model, own_pair, "gated_neuron", layers=(0, 1), max_fpr=0.1)
    assert partly.delta.notes["relative_cost"] > 3 * whole.delta.notes["relative_cost"]
    blind += [tuple(model.tokenizer(str(p)).input_ids) for p in own_pair.prompts("train")[1:]]
    with pytest.raises(UserError, match=r"w40 is not detected in 3 of \d prompts"):
        unlearn(model, own_pair, "gated_neuron", layers=(0, 1), max_fpr=0.1)


def test_pairs_are_fitted_together_only_by_methods_that_can(tiny_model, own_pair):
    model = tiny_model()
    other = ConceptPair("w41", "w21", "own", templates=TEMPLATES)
    edit = unlearn(model, [own_pair, other], "gated_neuron", layers=(0, 1))
    assert [p["subject"] for p in edit.pair] == ["w40", "w41"]
    name = architecture_of(model).layers[0].mlp.out_name
    assert edit.delta.changes[name].appended.shape[1] == 2 * 2  # two neurons a unit
    with pytest.raises(UserError, match="one pair at a time"):
        unlearn(model, [own_pair, other], "neurons")
    with pytest.raises(UserError, match="at least one"):
        unlearn(model, [], "gated_neuron")
    assert METHODS["gated_neuron"].supports_batch


def test_old_hyperparameters_are_renamed(grown_model, own_pair):
    """Files and calls until 2026-11 name them otherwise; the edit is the same."""
    model = grown_model()
    settings = {"layers": (0, 1), "step_sizes": (0.2,), "target_prob": 1e-4, "damping": 0.02}
    new = unlearn(
        model, own_pair, "gated_neuron", max_fpr=0.1, parametrization="low_rank", **settings
    )
    old = unlearn(
        model,
        own_pair,
        "gated_neuron",
        layers=(0, 1),
        quantile=0.9,
        form="weights",
        steps=(0.2,),
        floor=1e-4,
        ridge=0.02,
    )
    assert old.hyperparameters == new.hyperparameters
    for name, tensor in new.delta.tensors().items():
        assert torch.equal(tensor, old.delta.tensors()[name])
