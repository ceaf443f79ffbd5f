"""Reading activations: order, positions and sites, against passes of single sequences."""

import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.facts import Prompt
from helpers.forward.activations import cache_activations, stack_layers, trace_activations
from helpers.forward.second_moments import second_moments

SEQUENCES = [(5, 9, 14, 22), (7, 8), (11, 12, 13, 14, 15), (8, 7)]
POSITIONS = [[3, 1], None, [4], [0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_stand_in_the_order_of_the_sequences_and_their_positions(tiny_model, family):
    model = tiny_model(family)
    activations = cache_activations(
        model, SEQUENCES, sites=["mlp_in", "neurons"], layers=[2, -3], positions=POSITIONS
    )
    assert list(activations) == [("mlp_in", 0), ("neurons", 0), ("mlp_in", 2), ("neurons", 2)]
    for key, rows in activations.items():
        alone = [
            trace_activations(model, torch.tensor([ids]), [key])[key][0][at or slice(None)]
            for ids, at in zip(SEQUENCES, POSITIONS, strict=True)
        ]
        torch.testing.assert_close(rows, torch.cat(alone).detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_common_prefix_is_run_once_and_read_for_every_sequence(tiny_model, family):
    model, prefix = tiny_model(family), tuple(range(5, 19))
    sequences = [(*prefix, 20 + i, 7 + i % 3)[: 16 - i % 2] for i in range(12)]
    positions = [[2, len(ids) - 1] if i % 4 else [0] for i, ids in enumerate(sequences)]
    keys = [("neurons", 0), ("residual", 1)]
    n_tokens = []
    embed = model._module.get_input_embeddings()
    hook = embed.register_forward_hook(lambda *call: n_tokens.append(call[1][0].numel()))
    try:
        rows = cache_activations(
            model, sequences, sites={"neurons": [0], "residual": [1]}, positions=positions
        )
    finally:
        hook.remove()
    assert sum(n_tokens) < sum(map(len, sequences)) / 3
    for key in keys:
        alone = [
            trace_activations(model, torch.tensor([ids]), [key])[key][0, at]
            for ids, at in zip(sequences, positions, strict=True)
        ]
        torch.testing.assert_close(rows[key], torch.cat(alone).detach(), rtol=1e-4, atol=1e-5)


def test_named_positions_are_those_of_prompts(tiny_model):
    model = tiny_model()
    prompts = [Prompt("w1 w3 w4", subject="w3"), Prompt("w3 w6", subject="w3")]
    every = cache_activations(model, prompts, sites=["residual"], positions="all")
    for positions, rows in (("subject", [1, 3]), ("last", [2, 4])):
        chosen = cache_activations(model, prompts, sites=["residual"], positions=positions)
        torch.testing.assert_close(chosen["residual", 1], every["residual", 1][rows])
    assert stack_layers(every, "residual").shape == (5, 3, 16)


def test_sites_may_have_layers_of_their_own(tiny_model):
    activations = cache_activations(tiny_model(), ["w1 w2"], sites={"mlp": [2], "heads": [0, -1]})
    assert list(activations) == [("heads", 0), ("heads", 2), ("mlp", 2)]
    assert cache_activations(tiny_model(), ["w1 w2"], sites=["mlp"], layers=[]) == {}


def test_traced_activations_carry_gradients(tiny_model):
    model = tiny_model()
    model._module.requires_grad_(True)
    states = trace_activations(model, torch.tensor([SEQUENCES[0]]), [("residual", 1)])
    states["residual", 1].sum().backward()
    assert model._module.get_input_embeddings().weight.grad.abs().sum() > 0
    model._module.zero_grad()
    model._module.requires_grad_(False)


def test_second_moments_are_sums_over_the_chosen_positions(tiny_model):
    model = tiny_model()
    sums, n = second_moments(model, zip(SEQUENCES, POSITIONS, strict=True), layers=[1])
    keys = cache_activations(model, SEQUENCES, sites=["neurons"], layers=[1], positions=POSITIONS)
    rows = keys["neurons", 1]
    assert n == len(rows) == 6
    torch.testing.assert_close(sums[1].float(), rows.T @ rows)


def test_an_unknown_site_or_position_is_one_sentence(tiny_model):
    with pytest.raises(UserError, match="no site 'nowhere'"):
        cache_activations(tiny_model(), ["w1"], sites=["nowhere"])
    with pytest.raises(UserError, match="no position 'middle'"):
        cache_activations(tiny_model(), ["w1"], sites=["mlp"], positions="middle")
