"""RepSelect: its collapse by hand, its budget, and its gradient with the adapter on."""

import pytest
import torch
from small_edits import own_pair, small_world  # noqa: F401

from helpers.errors import UserError
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.methods.surgery import repselect as module
from helpers.methods.training.data import BatchSchedule, forget_retain_data
from helpers.models import model_hash, torch_module
from helpers.training.examples import mean_loss


@pytest.fixture
def words(monkeypatch):
    """Text in the tiny models' words."""
    tokens = torch.randint(4, 64, (8, 32), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "corpus_tokens", lambda *a, **k: tokens)
    return tokens


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_the_strongest_directions_are_shrunk_on_both_sides(shape):
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    whole = module.collapse(G, n_components=100)
    torch.testing.assert_close(whole, (U * (S[-1] ** 2 / S)) @ Vh, rtol=1e-4, atol=1e-5)
    # as the paper has it: first along the inputs' directions V, then along the outputs' U
    n = 3
    ratio = S[:n] / S[n - 1]
    step = G - (G @ Vh[:n].T) * (1 - 1 / ratio) @ Vh[:n]
    step = step - (U[:, :n] * (1 - 1 / ratio)) @ (U[:, :n].T @ step)
    torch.testing.assert_close(module.collapse(G, n_components=n), step, rtol=1e-4, atol=1e-5)
    assert not module.collapse(torch.zeros(shape), n_components=n).any()


def test_the_gradient_is_that_of_the_answers_loss(tiny_model):
    model, pair = tiny_model(), own_pair()
    data = forget_retain_data(model, [pair], n_neighbours=0, n_passages=0, seed=0)
    batches = BatchSchedule(data.forget, 2, seed=0).batches
    name = "model.layers.1.mlp.down_proj.weight"
    settings = module.RepSelectHparams(lora_lr=0.0)
    before = model_hash(model)
    found = module.forget_gradients(model, [name], batches, settings, seed=0)[name]
    weight = torch_module(model).get_parameter(name)
    was_trained = weight.requires_grad
    with torch.enable_grad():
        weight.requires_grad_(True)
        loss = sum(mean_loss(model, batch) for batch in batches)
        (expected,) = torch.autograd.grad(loss, [weight])
    weight.requires_grad_(was_trained)
    torch.testing.assert_close(found, expected)
    pushed = module.RepSelectHparams(lora_lr=1.0)
    other = module.forget_gradients(model, [name], batches, pushed, seed=0)[name]
    assert not torch.allclose(other, found)
    assert model_hash(model) == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_forgets_within_the_budget(grown_model, words, family):
    model, pair = grown_model(family), own_pair()
    hash_before = model_hash(model)
    before = answer_probability(model, pair.prompts("train"))
    norms = []
    for budget in (0.001, 0.01):
        edit = unlearn(model, pair, "repselect", kl_budget=budget)
        assert 0.9 * budget <= edit.delta.notes["kl"] <= budget
        norms.append(edit.delta.norm())
        with edit.applied(model):
            after = answer_probability(model, pair.prompts("train"))
        assert after.mean() < before.mean()
    assert norms[0] < norms[1] and model_hash(model) == hash_before
    with pytest.raises(UserError, match="kl_budget"):
        unlearn(model, pair, "repselect", kl_budget=0)
