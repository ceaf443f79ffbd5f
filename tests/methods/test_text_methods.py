"""Methods for text: their formulas, their budget, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_edits import own_pair
from tiny_models import FAMILIES
from two_languages import bilingual, bilingual_folder, language_request  # noqa: F401

from helpers.errors import UserError
from helpers.forward.activations import cache_activations
from helpers.methods import METHODS, Edit, load_unlearning, unlearn
from helpers.methods.deleted_neurons import deletion
from helpers.methods.fitting import retain_budget as module
from helpers.methods.fitting.kfac import KroneckerFactors, kfac_factors
from helpers.methods.fitting.retain_budget import RetainBudget, TextHparams, mean_token_loss
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.inference.key_space_detection import mean_keys_of
from helpers.methods.inference.neuron_adjust import (
    MOMENTS,
    Shift,
    jeffreys_divergence,
    preactivation_moments,
)
from helpers.methods.surgery.curvature_edit import CurvatureBasis
from helpers.methods.surgery.kfade import Preconditioner
from helpers.methods.surgery.selective_pruning import rank_by_ratio
from helpers.models import architecture_of, model_hash
from helpers.requests import Corpus
from helpers.training.examples import Example, collate, label_logits, token_losses

SMALL = {"n_tokens": 600, "n_budget_tokens": 400, "retain_rise": 0.3}
METHOD_NUMBERS = {
    "selective_pruning": {"round_share": 0.1, "n_rounds": 2},
    "random_pruning": {"round_share": 0.1, "n_rounds": 2},
    "curvature_edit": {"layers": (1, 2)},
    "kfade": {"layers": (1, 2), "n_steps": 2},
    "neuron_adjust": {"max_share": 0.5},
    "key_space_detection": {"layer": 1},
}
FORGET = [Example((4, 5, 6, 7, 8), 1), Example((9, 8, 7), 1)]
RETAIN = [Example((40, 41, 42, 43), 1), Example((50, 51, 52, 53, 54, 55), 3)]
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 5, 4, 6, 10]])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))


def made_by(model, method: str, **given) -> Edit:
    return unlearn(model, language_request(), method, **SMALL | METHOD_NUMBERS[method] | given)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model._module(TOKENS).logits


def random_factors(n_out: int, n_in: int) -> KroneckerFactors:
    draw = torch.Generator().manual_seed(0)
    a, g = (torch.randn(40, n, generator=draw) for n in (n_in, n_out))
    return KroneckerFactors(a.T @ a / 40, g.T @ g / 40)


@pytest.mark.parametrize("method", METHOD_NUMBERS)
def test_it_forgets_within_the_budget_and_travels(bilingual, method, tmp_path):  # noqa: F811
    model = bilingual()
    before = model_hash(model)
    edit = made_by(model, method)
    assert model_hash(model) == before
    plain = logits(model)
    edit.save(tmp_path / "it.safetensors")
    loaded = load_unlearning(tmp_path / "it.safetensors")
    assert loaded.pair == {"request": "a", "kind": "capability"}
    with edit.applied(model):
        changed = logits(model)
        notes = edit.delta.notes
        if method != "random_pruning":  # measured again, on the same text
            hparams = TextHparams(**SMALL)
            after = RetainBudget(model, language_request(), hparams).before
            assert after.forget == pytest.approx(notes["after"]["forget"], abs=1e-4)
            assert after.forget > notes["before"]["forget"] + 0.02
            assert after.forget <= notes["floor"] or method == "key_space_detection"
            assert after.retain["b"] <= 1.3 * notes["before"]["retain"]["b"] + 1e-4
    with loaded.applied(model):
        assert torch.equal(logits(model), changed)
    assert model_hash(model) == before and torch.equal(logits(model), plain)
    again = made_by(model, method).delta.tensors()
    assert all(torch.equal(again[name], x) for name, x in edit.delta.tensors().items())


def test_it_works_in_half_precision(bilingual):  # noqa: F811
    model = bilingual("bfloat16")
    for method in METHOD_NUMBERS:
        before = model_hash(model)
        edit = made_by(model, method)
        edit.apply(model)
        edit.revert(model)
        assert model_hash(model) == before


@pytest.mark.parametrize("method", ["curvature_edit", "kfade"])
def test_matrices_that_are_stored_transposed_change_alike(grown_model, method, monkeypatch):
    model = grown_model("gpt2")
    monkeypatch.setattr(RetainBudget, "allows", lambda *args, **how: True)
    edit = made_by(model, method, layers=(1,), retain_rise=100)
    mlp = architecture_of(model).layers[1].mlp
    assert mlp.transposed and set(edit.delta.changes) == {mlp.in_name, mlp.out_name}
    with edit.applied(model):
        hparams = TextHparams(**SMALL)
        after = RetainBudget(model, language_request(), hparams).before
    assert after.forget == pytest.approx(edit.delta.notes["after"]["forget"], rel=1e-4)


def test_a_strength_that_one_text_refuses_is_not_measured_on_the_others(bilingual, monkeypatch):  # noqa: F811
    request = language_request()
    twice = replace(request, retain=(*request.retain, replace(request.retain[0], name="c")))
    model = bilingual()
    budget = RetainBudget(model, twice, TextHparams(**SMALL))
    assert list(budget.before.retain) == ["b", "c"] and budget.losses() == budget.before
    lost = {"b": 1.0, "c": 2.0}  # factors of their losses
    monkeypatch.setattr(
        module,
        "mean_token_loss",
        lambda _, examples: next(
            lost[name] * budget.before.retain[name]
            for name, part in budget._retain_dev.items()
            if part is examples
        ),
    )
    assert not budget.allows(budget.losses())
    after = budget.losses()  # the text that refused comes first, and settles it
    assert list(after.retain) == ["c"] and not budget.allows(after)
    lost["c"] = float("nan")
    assert not budget.allows(budget.losses())


def test_random_neurons_are_as_many_of_the_same_layers(bilingual):  # noqa: F811
    model = bilingual()
    chosen, drawn = (made_by(model, m).delta for m in ("selective_pruning", "random_pruning"))
    assert drawn.notes["by_layer"] == chosen.notes["by_layer"]
    assert drawn.notes["n_neurons"] == sum(drawn.notes["by_layer"].values())
    one, two = chosen.tensors(), drawn.tensors()
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_ratios_of_mean_activations(grown_model, family):
    model = grown_model(family)
    ranked = rank_by_ratio(model, FORGET, RETAIN, excluded=[(0, 3)])
    means = []
    for examples in (FORGET, RETAIN):
        rows: list[torch.Tensor] = []
        mlp = architecture_of(model).layers[2].mlp
        hook = mlp.out_module.register_forward_hook(
            lambda m, args, out, rows=rows: rows.append(args[0])
        )
        for example in examples:
            with torch.inference_mode():
                model._module(torch.tensor([example.ids]))
            # not the first token, and of an answer from the token that predicts it
            rows[-1] = rows[-1].reshape(-1, rows[-1].shape[-1])[max(1, example.labels_start - 1) :]
        hook.remove()
        means.append(torch.cat(rows).abs().mean(0))
    expected = means[0] / (means[1] + 1e-5)
    scores = ranked.query("layer == 2").set_index("neuron")["score"].sort_index()
    torch.testing.assert_close(
        torch.tensor(scores.to_numpy()).float(), expected, rtol=1e-3, atol=1e-5
    )
    assert ranked["score"].is_monotonic_decreasing
    assert len(ranked) == 3 * len(expected) - 1 and ranked.query("layer == 0 and neuron == 3").empty


def test_the_neuron_of_forget_tokens_is_the_first(tiny_model):
    model = tiny_model()
    arch = architecture_of(model)
    with torch.no_grad():
        embedding = model._module.get_input_embeddings().weight
        embedding[:, 0] = torch.where(torch.arange(len(embedding)) < 30, 5.0, -5.0)
        for matrix in (arch.layers[1].mlp.W_gate(), arch.layers[1].mlp.W_in()):
            matrix[7] = 0
            matrix[7, 0] = 1.0  # silu is large above zero, and next to nothing below
    first = rank_by_ratio(model, FORGET, RETAIN).iloc[0]
    assert (first["layer"], first["neuron"]) == (1, 7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_many_deleted_neurons_make_a_dense_change(tiny_model, family):
    model = tiny_model(family)
    chosen = [(1, i) for i in range(14)] + [(2, 5)]
    edit = deletion(model, chosen)
    dense = [c.dense is not None for c in edit.changes.values()]
    assert any(dense) and not all(dense)
    wrapped = Edit("made", {}, edit, {}, 0, 0.0, model_hash(model))
    mlps = [architecture_of(model).layers[i].mlp for i in (1, 2)]
    expected = [(m.W_in().clone(), m.W_out().clone()) for m in mlps]
    for (keys, values), n in zip(expected, (slice(14), [5]), strict=True):
        keys[n], values[:, n] = 0, 0
    with wrapped.applied(model):
        for mlp, (keys, values) in zip(mlps, expected, strict=True):
            assert torch.equal(mlp.W_in(), keys) and torch.equal(mlp.W_out(), values)


def test_the_curvature_basis_gives_the_matrix_back_and_drops_the_least():
    W = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    factors = random_factors(5, 7)
    basis = CurvatureBasis.of(W, factors)
    torch.testing.assert_close(basis.U_G @ basis.C @ basis.U_A.T, W)
    assert not basis.low_curvature_part(0.0).any()  # everything is kept
    lambda_G, lambda_A = (torch.linalg.eigvalsh(x) for x in (factors.G, factors.A))
    products = {(i, j): float(lambda_G[i] * lambda_A[j]) for i in range(5) for j in range(7)}
    total, held, low = sum(products.values()), 0.0, set()
    for entry in sorted(products, key=lambda entry: products[entry]):
        held += products[entry]
        if held > 0.2 * total:
            break
        low.add(entry)
    assert {tuple(x) for x in basis.is_low(0.2).nonzero().tolist()} == low and low
    removed = torch.zeros(5, 7)
    for i, j in low:
        u, v = basis.U_G[:, i], basis.U_A[:, j]
        removed += float(u @ W @ v) * torch.outer(u, v)
    torch.testing.assert_close(basis.low_curvature_part(0.2), removed, rtol=1e-4, atol=1e-5)


def test_a_step_solves_the_damped_kronecker_system(bilingual):  # noqa: F811
    factors, damping = random_factors(5, 7), 0.04
    gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    G, A = (x + 0.2 * x.diagonal().mean() * torch.eye(len(x)) for x in (factors.G, factors.A))
    expected = torch.linalg.solve(torch.kron(G, A), gradient.flatten()).view(5, 7)
    solved = Preconditioner.of(factors, damping).solve(gradient)
    torch.testing.assert_close(solved, expected, rtol=1e-3, atol=1e-4)

    model = bilingual()
    edit = made_by(model, "kfade", layers=(1,), n_steps=1, damping=damping)
    mlp = architecture_of(model).layers[1].mlp
    budget = RetainBudget(model, language_request(), TextHparams(**SMALL))
    [(_, of_layer)] = kfac_factors(model, budget.retain, layers=[1])
    weight = mlp.out_module.weight.requires_grad_(True)
    batch = collate(budget.forget)
    with torch.enable_grad():
        loss = token_losses(label_logits(model, batch), batch).mean()
        (gradient,) = torch.autograd.grad(loss, [weight])
    weight.requires_grad_(False)
    direction = Preconditioner.of(of_layer["out"], damping).solve(gradient)
    change = edit.delta.changes[mlp.out_name].dense
    unit = change / change.norm()
    torch.testing.assert_close(unit, direction / direction.norm(), rtol=1e-2, atol=1e-3)


def test_a_shift_maps_one_normal_distribution_to_the_other():
    moments = torch.tensor([[5.0, 0.0], [2.0, 1.0], [-1.0, 8.0], [0.5, 2.0]])
    shift = Shift([3, 4], moments)
    z = torch.tensor([[5.0, 0.0], [7.0, -1.0]])  # the forget means, one deviation away
    torch.testing.assert_close(shift.shifted(z), torch.tensor([[-1.0, 8.0], [-0.5, 6.0]]))
    stays = torch.tensor([[-1.0, 8.0], [-1.2, 9.0]])  # likelier under the retain distribution
    assert torch.equal(shift.shifted(stays), stays)
    f, r = moments[:2].double(), moments[2:].double()
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(
        jeffreys_divergence(f, r), kl(normal(*f), normal(*r)) + kl(normal(*r), normal(*f))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_shifted_neurons_are_those_of_the_nonlinearity(grown_model, family):
    model = grown_model(family)
    mlp = architecture_of(model).layers[1].mlp
    module = mlp.in_module if mlp.gate_module is None else mlp.gate_module
    mean, std = preactivation_moments(model, FORGET)
    rows: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda m, args, out: rows.append(out))
    for example in FORGET:
        with torch.inference_mode():
            model._module(torch.tensor([example.ids]))
        rows[-1] = rows[-1].reshape(-1, rows[-1].shape[-1])[1:]
    hook.remove()
    z = torch.cat(rows).double()
    torch.testing.assert_close(mean[1], z.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std[1], z.std(0, correction=0), rtol=1e-3, atol=1e-4)

    # a retain distribution far away and wide: every token but the first is sent to its mean
    parts = [[0.0, 0.0], [1e3, 1e3], [-50.0, 50.0], [1e-3, 1e-3]]
    values = {f"1.{name}": torch.tensor(x) for name, x in zip(MOMENTS, parts, strict=True)}
    settings = {"layers": [{"layer": 1, "neurons": [2, 9]}]}
    edit = Edit(
        "made", {}, HookIntervention("neuron_adjust", settings, values), {}, 0, 0.0, "0" * 16
    )
    edit = replace(edit, base_hash=model_hash(model))
    seen: list[torch.Tensor] = []
    with torch.inference_mode():
        plain = module_output(model, module)
        with edit.applied(model):
            hook = module.register_forward_hook(lambda m, args, out: seen.append(out))
            model._module(TOKENS)
            hook.remove()
    changed = seen[0].reshape(2, 5, -1)
    assert torch.equal(changed[:, 0], plain[:, 0])
    others = [i for i in range(changed.shape[-1]) if i not in (2, 9)]
    assert torch.equal(changed[..., others], plain[..., others])
    torch.testing.assert_close(
        changed[:, 1:, [2, 9]], torch.tensor([-50.0, 50.0]).expand(2, 4, 2), atol=0.1, rtol=0
    )


def module_output(model, module) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda m, args, out: rows.append(out))
    model._module(TOKENS)
    hook.remove()
    return rows[0].reshape(2, 5, -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_in_the_box_gets_a_uniform_prediction(grown_model, family):
    model = grown_model(family)
    text = [5, 6, 7, 8, 9, 10, 11, 12]
    sites = cache_activations(model, [text], sites=["mlp_in"], layers=[1], positions="all")
    x = sites["mlp_in", 1]
    means = torch.stack([x[1 : t + 1].mean(0) for t in range(4, len(text))])  # of tokens 4 to 7
    torch.testing.assert_close(mean_keys_of(model, [Example(tuple(text), 1)], 1), means)
    mean, std = means[1], (means[1] - means[2]).abs() / 2 + 1e-3
    distances = ((means - mean) / std).abs().amax(-1)
    radius = float(distances.sort().values[1:3].mean())
    inside = distances <= radius
    assert 0 < int(inside.sum()) < 4
    box = HookIntervention(
        "key_space_detection", {"layer": 1, "radius": radius}, {"mean": mean, "std": std}
    )
    tokens = torch.tensor([text, text[::-1]])
    with torch.inference_mode():
        plain = model._module(tokens).logits
        with Edit("made", {}, box, {}, 0, 0.0, model_hash(model)).applied(model):
            changed = model._module(tokens).logits
    assert torch.equal(changed[0, :4], plain[0, :4])
    for found, before, is_in in zip(changed[0, 4:], plain[0, 4:], inside, strict=True):
        assert torch.equal(found, torch.zeros_like(found) if is_in else before)


def test_a_box_of_other_tensors_is_refused():
    settings, one = {"layer": 1, "radius": 2.0}, torch.ones(16)
    for parts, sentence in (
        ({"mean": one}, "'std' is not what a box has"),
        ({"mean": one, "std": 0 * one}, "'std' is not positive"),
        ({"mean": one, "std": torch.ones(8)}, "of another length"),
        ({"mean": one, "std": one, "more": one}, "'more' is not what a box has"),
    ):
        with pytest.raises(UserError, match=sentence):
            HookIntervention("key_space_detection", settings, parts)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"1.forget_std": torch.zeros(2)}, "'1.forget_std' is not positive"),
        ({"1.forget_std": torch.ones(3)}, "'1.forget_std' is not what its neurons have"),
        ({"2.forget_std": torch.ones(2)}, "'2.forget_std' is not what its neurons have"),
    ],
)
def test_other_moments_make_no_adjustment(change, sentence):
    parts = {f"1.{name}": torch.ones(2) for name in MOMENTS} | change
    with pytest.raises(UserError, match=sentence):
        HookIntervention("neuron_adjust", {"layers": [{"layer": 1, "neurons": [2, 9]}]}, parts)
    doubled = {"layers": [{"layer": 1, "neurons": [2, 2]}]}
    with pytest.raises(UserError, match="a neuron comes twice"):
        HookIntervention("neuron_adjust", doubled, {f"1.{n}": torch.ones(2) for n in MOMENTS})


def test_losses_are_those_of_all_labels(grown_model):
    model, total, n = grown_model(), 0.0, 0
    for example in FORGET + RETAIN:
        with torch.inference_mode():
            logp = model._module(torch.tensor([example.ids])).logits.log_softmax(-1)[0]
        for t in range(example.labels_start, len(example.ids)):
            total, n = total - float(logp[t - 1, example.ids[t]]), n + 1
    assert mean_token_loss(model, FORGET + RETAIN) == pytest.approx(total / n, rel=1e-5)


def test_the_strongest_within_the_budget_is_found(bilingual):  # noqa: F811
    budget = RetainBudget(bilingual(), language_request(), TextHparams(**SMALL))
    start = budget.before

    def measure(strength: float):
        return replace(start, retain={k: v * (1 + strength) for k, v in start.retain.items()})

    strengths = [0.01, 0.1, 0.2, 0.29, 0.31, 0.5]
    assert budget.strongest(strengths, measure)[0] == 0.29
    assert budget.strongest(strengths, measure, part=0.5)[0] == 0.1
    assert budget.strongest([0.31], measure) is None
    assert not budget.allows(replace(start, forget=budget.floor + 0.01))
    assert not budget.allows(replace(start, retain=dict.fromkeys(start.retain, float("nan"))))


def test_texts_of_one_word_have_a_uniform_guess_as_floor(bilingual):  # noqa: F811
    words = Corpus.of_texts("words", [f"w{i}" for i in range(12)])  # they have no order to lose
    request = replace(language_request(), dev=words)
    budget = RetainBudget(bilingual(), request, TextHparams(**SMALL))
    assert budget.floor == pytest.approx(np.log(64))


@pytest.mark.parametrize("method", METHOD_NUMBERS)
def test_a_pair_is_refused_in_one_sentence(tiny_model, method):
    with pytest.raises(
        UserError, match=r"does not forget one pair: choose .*gated_neuron"
    ) as error:
        unlearn(tiny_model(), own_pair(), method)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", METHOD_NUMBERS)
def test_nothing_within_the_budget_is_an_error(bilingual, method, monkeypatch):  # noqa: F811
    monkeypatch.setattr(RetainBudget, "allows", lambda *args, **how: False)
    model = bilingual()
    before = model_hash(model)
    with pytest.raises(UserError, match=r"The weakest change of .* raise retain_rise"):
        made_by(model, method)
    assert model_hash(model) == before


def test_bad_requests_are_one_sentence(bilingual):  # noqa: F811
    model, request = bilingual(), language_request()
    with pytest.raises(UserError, match=r"does not forget a .capability.*selective_pruning"):
        unlearn(model, request, "rome")
    with pytest.raises(UserError, match="no text to retain"):
        unlearn(model, replace(request, retain=()), "kfade")
    with pytest.raises(UserError, match="no text in the corpus 'nothing'"):
        unlearn(model, replace(request, forget=Corpus.of_texts("nothing", [])), "kfade")
    with pytest.raises(UserError, match="retain_rise is 0"):
        made_by(model, "neuron_adjust", retain_rise=0)
    assert "selective_pruning" in METHODS
    assert unlearn(model, request, **SMALL).method == "selective_pruning"
