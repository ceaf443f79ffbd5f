"""T-Patcher: its losses by hand, its predictions against the model's, where patches are active."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_edits import own_pair
from tiny_models import FAMILIES, KNOWN
from torch.distributions import Bernoulli, kl_divergence

from helpers.errors import UserError
from helpers.facts import ConceptPair, facts
from helpers.facts.concept_prompts import forget_prompts
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import token_ids
from helpers.methods import WeightEdit, unlearn
from helpers.methods.fitting.answer_queries import answer_queries, step_logprobs
from helpers.methods.fitting.patches import (
    Patches,
    PatchLoss,
    TPatcherHparams,
    activation_loss,
    appended_patches,
    edit_loss,
    memory_losses,
)
from helpers.methods.surgery.t_patcher import memory_queries, patched_tokens
from helpers.models import architecture_of, model_hash, torch_module

FRANCE = ConceptPair("France", "Paris")
BASELINE = {"n_baseline_subjects": 4, "min_baseline_prob": 1e-6}


# In the taught model unknown countries get known capitals, which no last layer tells apart.
TAUGHT = {
    "steps": 200,
    "lr": 0.03,
    "memory_weight": 1.0,
    "n_memory_tokens": 64,
    "min_baseline_prob": 1e-3,
}


def among_known(subject: str) -> ConceptPair:
    """A taught pair that is compared with the other taught countries alone."""
    targets = {f.subject: f.target for f in facts("capital")}
    others = tuple(ConceptPair(s, targets[s]) for s in KNOWN if s != subject)
    return ConceptPair(subject, targets[subject], others=others)


def pair_with_others(target: str) -> ConceptPair:
    """A pair in the tiny models' words that is compared with other subjects."""
    pair = replace(own_pair(), target=target)
    others = [pair.about(f"w{i}", f"w{i + 20}") for i in range(30, 36)]
    return replace(pair, others=tuple(others))


def random_patches(own, mlp, seed=0) -> Patches:
    """Patches with keys, biases and values as no training would leave them."""
    patches = Patches(own, activation=mlp.activation, gain=2.0, value_unit=0.5)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in patches.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return patches


def queries_of(model, sequences) -> torch.Tensor:
    """Inputs of the last MLP at the end of each sequence."""
    layer = architecture_of(model).n_layers - 1
    return cache_activations(model, sequences, sites=["mlp_in"], layers=[layer])["mlp_in", layer]


def preactivations(edit, model, x) -> torch.Tensor:
    """What the appended neurons get to see before the nonlinearity, without the gain."""
    mlp, changes = architecture_of(model).layers[-1].mlp, edit.delta.changes
    name = mlp.gate_name or mlp.in_name
    bias = changes[f"{name.removesuffix('weight')}bias"].appended
    return (x @ changes[name].appended.T + bias) / edit.hyperparameters["gain"]


@pytest.mark.parametrize("top_k", [1, 7, 1000])
def test_the_losses_are_the_papers(top_k):
    generator = torch.Generator().manual_seed(top_k)
    z_memory = 2 * torch.randn(40, generator=generator, dtype=torch.float64)
    z_own = 2 * torch.randn(6, generator=generator, dtype=torch.float64)

    def top_mean(values) -> float:
        return float(np.sort(np.exp(np.ravel(values)))[::-1][:top_k].mean())

    m, e = z_memory.numpy(), z_own.numpy()
    l_m1, l_m2 = memory_losses(z_memory, z_own, beta=-3.0, gamma=3.0, top_k=top_k)
    assert float(l_m1) == pytest.approx(top_mean(m + 3))
    assert float(l_m2) == pytest.approx(top_mean(m[:, None] - e[None] + 3))
    assert float(activation_loss(z_own, top_k=top_k)) == pytest.approx(top_mean(-e))


def test_the_edit_loss_is_zero_at_the_level_without_the_subject():
    p = torch.tensor([0.9, 0.2, 0.01, 0.004], dtype=torch.float64, requires_grad=True)
    goals = torch.tensor([0.01, 0.01, 0.01, 0.01], dtype=torch.float64)
    loss = edit_loss(p.log(), goals.log())
    expected = kl_divergence(Bernoulli(probs=goals), Bernoulli(probs=p)).mean()
    torch.testing.assert_close(loss, expected)
    (slope,) = torch.autograd.grad(loss, p)
    assert (slope[:2] > 0).all() and abs(slope[2]) < 1e-9 and slope[3] < 0
    certain = torch.zeros(1, requires_grad=True)  # log 1
    assert torch.isfinite(edit_loss(certain, torch.tensor([-5.0])))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_predictions_that_are_trained_are_the_edited_models(tiny_model, family):
    model, pair = tiny_model(family), pair_with_others("w20 w21")
    arch = architecture_of(model)
    mlp, layer = arch.layers[-1].mlp, arch.n_layers - 1
    queries = answer_queries(model, pair, **BASELINE)
    assert len(queries) == 2
    states = [
        cache_activations(model, q.ids, sites=["mlp_in", "residual"], layers=[layer])
        for q in queries
    ]
    own = [x["mlp_in", layer] for x in states]
    patches = random_patches(own, mlp)
    hparams = TPatcherHparams(gain=2.0)
    residual = [x["residual", layer] for x in states]
    objective = PatchLoss(model, queries, own, residual, own[0][:2], hparams)
    with torch.no_grad():
        trained = objective.logprobs(patches)
    edit = WeightEdit.of(torch_module(model), appended_patches(mlp, patches))
    steps = [s for q in queries for s in zip(q.ids, q.tokens, strict=True)]
    before = step_logprobs(model, steps)
    edit.check_fits(torch_module(model), arch)
    snapshot = model_hash(model)
    edit.add_to(torch_module(model))
    after = step_logprobs(model, steps)
    assert model_hash(model) != snapshot and not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(trained, after, rtol=1e-4, atol=1e-4)


def test_each_token_of_an_answer_has_its_goal_from_other_subjects(tiny_model):
    model, pair = tiny_model(), pair_with_others("w20 w21")
    first, second = answer_queries(model, pair, **BASELINE)
    words = [model.tokenizer(w).input_ids[-1] for w in ("w20", "w21")]
    expected = []
    for prompt, *others in zip(
        pair.prompts("train"), *(o.prompts("train") for o in pair.neighbours(4)), strict=True
    ):
        probabilities = []
        for other in others:
            ids = torch.tensor([[*token_ids(model, other), *words]])
            with torch.no_grad():
                logprobs = torch_module(model)(ids).logits[0].log_softmax(-1)
            probabilities.append([logprobs[n - 3, w].exp() for n, w in enumerate(words)])
        expected.append(torch.tensor(probabilities).mean(0).log())
        n = list(map(str, forget_prompts(pair))).index(str(prompt))
        torch.testing.assert_close(
            torch.stack([first.goals[n], second.goals[n]]), expected[-1], rtol=1e-4, atol=1e-4
        )
    # Prompts that are not asked about other subjects take the mean.
    train = list(map(str, pair.prompts("train")))
    for n, prompt in enumerate(forget_prompts(pair)):
        if str(prompt) not in train:
            torch.testing.assert_close(first.goals[n], torch.stack(expected).mean(0)[0])


def test_no_answer_is_pushed_below_the_least_probability(tiny_model):
    model, pair = tiny_model(), pair_with_others("w20 w21")
    free = answer_queries(model, pair, **BASELINE)
    bounded = answer_queries(model, pair, n_baseline_subjects=4, min_baseline_prob=0.005)
    whole = bounded[0].goals + bounded[1].goals
    assert (free[0].goals + free[1].goals < whole).all()
    torch.testing.assert_close(whole.exp(), torch.full_like(whole, 0.005))
    assert torch.equal(free[1].goals, bounded[1].goals)
    certain = answer_queries(model, pair, n_baseline_subjects=4, min_baseline_prob=1.0)
    assert (certain[0].goals == 0).all()  # no more than certain


def test_a_patch_fires_on_its_fact_and_is_silent_on_the_rest(knowing):
    model, pair = knowing(), among_known("France")
    arch, before = architecture_of(model), model_hash(model)
    mlp = arch.layers[-1].mlp
    names = [n for n in (mlp.in_name, mlp.gate_name, mlp.out_name) if n]
    old = {n: torch_module(model).get_parameter(n).clone() for n in names}
    hparams = TPatcherHparams(**TAUGHT)
    (query,) = patched_tokens(model, pair, hparams)
    memory = memory_queries(model, [pair], hparams, layer=arch.n_layers - 1, seed=0)
    edit = unlearn(model, pair, "t_patcher", **TAUGHT)
    assert edit.delta.notes["patches"] == 1 and edit.delta.notes["n_memory"] == len(memory)
    own, rest = (preactivations(edit, model, x) for x in (queries_of(model, query.ids), memory))
    assert (own > 0).float().mean() > 0.9
    assert (rest > 0).float().mean() < 0.05
    assert own.median() - rest.median() > 2
    with edit.applied(model):
        after = step_logprobs(model, list(zip(query.ids, query.tokens, strict=True))).exp()
        for name in names:  # the old neurons are as they were, bit by bit
            new = torch_module(model).get_parameter(name)
            width = tuple(slice(n) for n in old[name].shape)
            assert new.shape != old[name].shape and torch.equal(new[width], old[name])
    assert after.mean() < 0.3 * query.logprobs.exp().mean()
    assert model_hash(model) == before


def test_patches_of_several_pairs_leave_each_other_alone(knowing):
    model, pairs = knowing(), [among_known("Spain"), among_known("Egypt")]
    numbers = TAUGHT | {"memory_weight": 0.3}
    edit = unlearn(model, pairs, "t_patcher", **numbers)
    assert edit.delta.notes["patches"] == 2
    for n, pair in enumerate(pairs):
        (query,) = patched_tokens(model, pair, TPatcherHparams(**numbers))
        own = preactivations(edit, model, queries_of(model, query.ids))
        assert (own[:, n] > 0).float().mean() > 0.8
        assert (own[:, 1 - n] > 0).float().mean() < 0.1


def test_a_patch_that_stays_silent_is_told(knowing):
    silent = {"activation_weight": 0.0, "memory_weight": 1e4, "steps": 20}
    with pytest.warns(UserWarning, match="left .*% of what was wanted undone"):
        unlearn(knowing(), FRANCE, "t_patcher", **silent)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": 0}, "steps is 0: choose"),
        ({"lr": 0.0}, "lr is 0.0: choose"),
        ({"gain": 0.0}, "gain is 0.0: choose"),
        ({"memory_weight": -1.0}, "memory_weight is -1.0: choose"),
        ({"memory_top_k": 0}, "memory_top_k is 0: choose"),
        ({"min_excess": 1e3}, "no likelier with France than without"),
    ],
)
def test_what_cannot_be_trained_is_refused(knowing, given, sentence):
    model = knowing()
    before = model_hash(model)
    with pytest.raises(UserError, match=sentence):
        unlearn(model, FRANCE, "t_patcher", **given)
    assert model_hash(model) == before
