"""Kronecker factors against weight gradients, perturbed outputs and activations."""

import pytest
import torch

from helpers.forward.activations import cache_activations
from helpers.methods.fitting import kfac
from helpers.methods.fitting.kfac import kfac_factors, mlp_matrices
from helpers.models import architecture_of
from helpers.training.examples import Example

LAYER = 1


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))


@pytest.fixture
def likeliest(monkeypatch):
    """The likeliest token instead of a drawn one."""
    monkeypatch.setattr(
        torch, "multinomial", lambda p, n, generator=None: p.argmax(-1, keepdim=True)
    )


def factors_of(model, examples, **how):
    return dict(kfac_factors(model, examples, layers=[LAYER], **how))[LAYER]


def weight_gradient(model, weight, ids, label):
    weight.requires_grad_(True)
    with torch.enable_grad():
        logp = model._module(torch.tensor([ids])).logits.log_softmax(-1)[0, 0, label]
        (gradient,) = torch.autograd.grad(logp, [weight])
    weight.requires_grad_(False)
    return gradient


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_of_one_token_it_is_the_fisher_block(grown_model, likeliest, family):
    model = grown_model(family)
    model._module.requires_grad_(False)
    mlp = architecture_of(model).layers[LAYER].mlp
    with torch.no_grad():
        label = int(model._module(torch.tensor([[7, 8]])).logits[0, 0].argmax())
    found = factors_of(model, [Example((7, 8), 1)])
    assert set(found) == ({"in", "gate", "out"} if family == "llama" else {"in", "out"})
    for role, (_, module) in mlp_matrices(mlp).items():
        gradient = weight_gradient(model, module.weight, (7, 8), label)
        gradient = (gradient.T if mlp.transposed else gradient).flatten()
        # rows of the weight are outputs: vec(g aᵀ) vec(g aᵀ)ᵀ = g gᵀ ⊗ a aᵀ
        fisher = torch.outer(gradient, gradient)
        both = torch.kron(found[role].G, found[role].A)
        torch.testing.assert_close(both, fisher, rtol=1e-3, atol=1e-5 * float(fisher.max()))


def test_moments_are_means_over_the_tokens_that_labels_depend_on(grown_model, likeliest):
    model = grown_model()
    examples = [Example((5, 6, 7, 8, 9, 10), 1), Example((11, 12, 13, 14), 3)]  # an answer
    found = factors_of(model, examples)
    mlp = architecture_of(model).layers[LAYER].mlp
    inputs, keys, gradients = [], [], []
    for example in examples:
        sites = cache_activations(
            model, [example.ids[:-1]], sites=["mlp_in", "neurons"], positions="all"
        )
        inputs.append(sites["mlp_in", LAYER])
        keys.append(sites["neurons", LAYER])
        shift = torch.zeros(1, len(example.ids), 16, requires_grad=True)
        hook = mlp.out_module.register_forward_hook(lambda m, a, out, shift=shift: out + shift)
        with torch.enable_grad():
            logp = model._module(torch.tensor([example.ids])).logits.log_softmax(-1)
            # the last position predicts no label, nor do those inside a prompt
            total = logp.amax(-1)[0, example.labels_start - 1 : -1].sum()
            gradients.append(torch.autograd.grad(total, [shift])[0][0, :-1])
        hook.remove()
    for factor, rows in (
        (found["in"].A, inputs),
        (found["gate"].A, inputs),
        (found["out"].A, keys),
        (found["out"].G, gradients),
    ):
        stacked = torch.cat(rows)
        torch.testing.assert_close(factor, stacked.T @ stacked / len(stacked), rtol=1e-3, atol=1e-6)


def test_the_labels_are_drawn_and_the_cache_knows_text_and_seed(grown_model, monkeypatch):
    model = grown_model()
    text = [Example((5, 6, 7, 8, 9, 10), 1)]
    first, other = factors_of(model, text), factors_of(model, text, seed=1)
    assert not torch.allclose(first["out"].G, other["out"].G)
    torch.testing.assert_close(first["out"].A, other["out"].A)

    def unread(*_):
        raise AssertionError

    monkeypatch.setattr(kfac, "_moments", unread)
    again = factors_of(model, text)
    assert torch.equal(again["gate"].G, first["gate"].G)
    with pytest.raises(AssertionError):
        factors_of(model, [Example((5, 6, 7, 8, 9, 11), 1)])
