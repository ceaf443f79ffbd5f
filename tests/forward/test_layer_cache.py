"""A pass that starts at an edit's first layer gives, bit for bit, what the whole pass gives."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.forward import scoring
from helpers.forward.final_states import final_states
from helpers.forward.layer_cache import LayerCache, use_layer_cache
from helpers.methods import Change, Edit, WeightEdit
from helpers.models import architecture_of, model_hash

# prompts of one template share a cached beginning, the others run in batches of their own
PROMPTS = [f"w1 w2 w3 w4 w5 w6 w{i}" + " w9" * (i % 3) for i in range(10, 30)] + [
    "w1 w2 w3",
    "w5 w6",
]
ANSWERS = [" w7", " w1 w2"] * 11
TEXT = torch.randint(4, 60, (5, 8), generator=torch.Generator().manual_seed(0))


def turned(model, layer: int, *, part: str = "out") -> Edit:
    """An edit that turns around a weight of one layer's MLP."""
    mlp = architecture_of(model).layers[layer].mlp
    name = {"out": mlp.out_name, "in": mlp.in_name}[part]
    change = Change(dense=-2 * model._module.get_parameter(name).detach())
    delta = WeightEdit.of(model._module, {name: change})
    return Edit("turned", {}, delta, {}, 0, 0.0, model_hash(model))


def outputs(model):
    logprob = scoring.answer_logprobs(model, PROMPTS, ANSWERS)
    return np.concatenate([logprob, final_states(model, TEXT).numpy().ravel()])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_scored_from_cached_states_bit_for_bit(tiny_model, family):
    model = tiny_model(family)
    plain = outputs(model)
    with turned(model, 1).applied(model):
        edited = outputs(model)
    assert not np.allclose(plain, edited)
    cache = LayerCache(model, 1)
    with use_layer_cache(model, cache):
        assert np.array_equal(outputs(model), plain)
        assert cache.skipped == 0
        with turned(model, 1).applied(model):
            assert np.array_equal(outputs(model), edited)
            assert cache.skipped >= 3  # a prefix, its suffixes, the rest, the text
            with turned(model, 2, part="in").applied(model):
                both_edits = outputs(model)
        assert np.array_equal(outputs(model), plain)
    with turned(model, 1).applied(model), turned(model, 2, part="in").applied(model):
        assert np.array_equal(outputs(model), both_edits)


def test_the_lower_blocks_are_not_run(tiny_model):
    model, ran = tiny_model(), []
    blocks = [x.block._module for x in architecture_of(model).layers]
    for i, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    with use_layer_cache(model, LayerCache(model, -1)):
        first = final_states(model, TEXT)
        assert ran == [0, 1, 2]
        assert torch.equal(final_states(model, TEXT), first)
        assert ran == [0, 1, 2, 2]
        final_states(model, TEXT[:2])  # another batch
    final_states(model, TEXT)  # no longer inside
    assert ran == [0, 1, 2, 2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_change_below_is_noticed(tiny_model, layer):
    model = tiny_model()
    with use_layer_cache(model, LayerCache(model, 2)):
        plain = outputs(model)
        with turned(model, layer).applied(model):
            changed = outputs(model)
        assert np.array_equal(outputs(model), plain)
    with turned(model, layer).applied(model):
        assert np.array_equal(outputs(model), changed)


def test_changed_embeddings_are_noticed(tiny_model):
    model = tiny_model()
    with use_layer_cache(model, LayerCache(model, 1)):
        plain = outputs(model)
        with torch.no_grad():
            model._module.get_input_embeddings().weight.mul_(-1)
        changed = outputs(model)
    assert np.array_equal(outputs(model), changed) and not np.allclose(plain, changed)


def test_there_is_nothing_below_the_first_layer(tiny_model):
    model = tiny_model()
    with pytest.raises(UserError, match="no layer below layer 0"):
        LayerCache(model, 0)
    with pytest.raises(UserError, match="no layer 7"):
        LayerCache(model, 7)
