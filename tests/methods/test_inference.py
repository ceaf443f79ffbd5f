"""Interventions: what they compute, that every helper sees them, and that they leave no trace."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.evaluation import evaluate
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.final_states import final_states
from helpers.forward.generation import greedy
from helpers.forward.scoring import answer_logprobs, next_token_logprobs, token_nll
from helpers.methods import (
    METHODS,
    Change,
    Edit,
    HookIntervention,
    WeightEdit,
    active_edits,
    base_model,
    load_unlearning,
    unlearn,
)
from helpers.methods.inference.clamp import Clamp
from helpers.methods.inference.who_is import weakened
from helpers.models import architecture_of, model_hash, unembed
from helpers.models.hooks import Hook, active_interventions, register_intervention
from helpers.sae import SAEConfig, build, save_sae

FRANCE = ConceptPair("France", "Paris")
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 5, 4, 6, 10]])
NAMES = [n for n, m in METHODS.items() if m.family == "inference" and "pair" in m.takes]
SITES = ("mlp_in", "mlp")


def a_sae(model, folder, *, site: str = "mlp_in", layer: int = 1):
    d = architecture_of(model).d_model
    cfg = SAEConfig("topk", d, 4 * d, k=8, site=site, layer=layer, model_hash=model_hash(model))
    sae = build(cfg)
    save_sae(sae, folder)
    return sae


def given(method: str, model, folder) -> dict:
    if method == "who_is":
        return {"steps": 8, "lr": 0.02}
    if "saes" not in METHODS[method].hyperparameters():
        return {}
    a_sae(model, folder / "sae")
    found = {"saes": (str(folder / "sae"),), "n_latents": 2, "n_subjects": 8}
    return found | ({"share": 0.01} if method == "dynamic_clamp" else {})


def wrapped(model, intervention: HookIntervention) -> Edit:
    return Edit("made", {}, intervention, {}, 0, 0.0, model_hash(model))


def logits(model, tokens=TOKENS) -> torch.Tensor:
    with torch.inference_mode():
        return model._module(tokens).logits


def test_there_are_four():
    assert set(NAMES) == {"sae_clamp", "dynamic_clamp", "who_is", "in_context"}


def test_a_clamp_lets_the_gradient_of_what_it_does_not_add_pass(knowing, tmp_path):
    model = knowing()
    a_sae(model, tmp_path / "sae", site="mlp")  # reads and writes what the MLP of layer 1 writes
    made = unlearn(model, FRANCE, "sae_clamp", saes=(str(tmp_path / "sae"),), n_subjects=8)
    values = model._module.get_parameter(
        architecture_of(model).layers[1].mlp.out_name
    ).requires_grad_()
    with made.applied(model), torch.enable_grad():
        logp = model._module(TOKENS).logits.log_softmax(-1)[0, -1, 3]
        (found,) = torch.autograd.grad(logp, [values])
    assert found.abs().max() > 0


@pytest.mark.parametrize("method", NAMES)
def test_every_helper_sees_it_and_nothing_is_left(knowing, tmp_path, method):
    model = knowing()
    prompts, answers = FRANCE.prompts("heldout"), [" Paris"] * 11
    plain, before = logits(model), model_hash(model)
    scores = answer_logprobs(model, prompts, answers)
    said = greedy(model, prompts[:3], max_new_tokens=3)
    made = unlearn(model, FRANCE, method, **given(method, model, tmp_path))
    assert not made.changes_weights and made.report(model)["changes_weights"] is False
    with made.applied(model):
        assert model_hash(model) != before
        changed = answer_logprobs(model, prompts, answers)
        assert not np.allclose(changed, scores, atol=1e-3)
        # one at a time, all logits: no shared beginnings, no batches
        for prompt, score in zip(prompts, changed, strict=True):
            ids = model.tokenizer(str(prompt) + " Paris", return_tensors="pt").input_ids
            logp = logits(model, ids)[0, -2].log_softmax(-1)
            assert float(logp[ids[0, -1]]) == pytest.approx(score, abs=1e-3)
        first = next_token_logprobs(model, prompts[:3]).argmax(-1)
        now = greedy(model, prompts[:3], max_new_tokens=3)
        for text, token in zip(now, first, strict=True):
            assert text.split()[:1] == [model.tokenizer.decode([token])] or not text
        card = evaluate(model, FRANCE, n_neighbours=3, n_tokens=256)
        assert card["paraphrases"].value != card.before["paraphrases"]
        with base_model(model):
            assert model_hash(model) == before
            assert np.array_equal(answer_logprobs(model, prompts, answers), scores)
        assert np.array_equal(answer_logprobs(model, prompts, answers), changed)
    assert model_hash(model) == before
    assert torch.equal(logits(model), plain)
    assert greedy(model, prompts[:3], max_new_tokens=3) == said
    assert not model._module.base_model._forward_hooks
    assert not architecture_of(model).head._forward_hooks


@pytest.mark.parametrize("method", NAMES)
def test_a_saved_intervention_does_the_same(knowing, tmp_path, method):
    model = knowing()
    made = unlearn(model, FRANCE, method, **given(method, model, tmp_path))
    made.save(tmp_path / "it.safetensors")
    loaded = load_unlearning(tmp_path / "it.safetensors")
    assert (loaded.method, loaded.pair, loaded.seed) == (method, made.pair, 0)
    with made.applied(model):
        wanted, hash_ = logits(model), model_hash(model)
    with loaded.applied(model):
        assert torch.equal(logits(model), wanted) and model_hash(model) == hash_


@pytest.mark.parametrize("method", NAMES)
def test_what_makes_no_sense_is_told_in_one_sentence(knowing, tmp_path, method):
    model = knowing()
    made = unlearn(model, FRANCE, method, **given(method, model, tmp_path))
    for call in (lambda: made.to_peft(tmp_path / "peft", model), lambda: made.compressed(1)):
        with pytest.raises(UserError, match="is an intervention") as error:
            call()
        assert "\n" not in str(error.value)


def test_an_intervention_and_an_edit_stack_and_come_off_in_any_order(knowing):
    model = knowing()
    before = model_hash(model)
    asked = unlearn(model, FRANCE, "in_context")
    edit = unlearn(model, FRANCE, "random_direction")
    with edit.applied(model):
        edited = logits(model)
    asked.apply(model)
    alone = logits(model)
    edit.apply(model)
    assert not torch.allclose(logits(model), alone, atol=1e-5)
    asked.revert(model)
    assert torch.equal(logits(model), edited)
    edit.revert(model)
    assert model_hash(model) == before


def residual(model) -> list[torch.Tensor]:
    """The residual stream after every layer, of the first sequence."""
    states = cache_activations(model, [TOKENS[0].tolist()], sites=["residual"], positions="all")
    return list(states.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_a_clamped_latent_is_what_it_is_set_to(tiny_model, family, site):
    """x' = x + (−m − z_f) d_f where z_f > 0, by hand; first tokens and the SAE's error stay."""
    model = tiny_model(family)
    d = architecture_of(model).d_model
    sae = build(SAEConfig("topk", d, 4 * d, k=16, site=site, layer=1)).requires_grad_(False)
    states = cache_activations(model, TOKENS.tolist(), sites=[site], layers=[1], positions="all")
    x = states[site, 1].unflatten(0, TOKENS.shape)
    z = torch.stack([sae.encode(rows) for rows in x])  # (2, T, d_sae)
    latent = int((z[:, 1:] > 0).sum((0, 1)).argmax())
    expected = []
    for rows, code in zip(x, z, strict=True):
        rows = rows.clone()
        for t in range(1, len(rows)):
            if code[t, latent] > 0:
                rows[t] += (-3.0 - code[t, latent]) * sae.W_dec[latent]
        expected.append(rows)
    assert any(not torch.equal(a, b) for a, b in zip(expected, x, strict=True))
    clamp = Clamp(sae, [latent], [-3.0], 0.0)
    clamp._batch_size = 2
    assert torch.allclose(clamp.clamped(x), torch.stack(expected), atol=1e-5)
    plain = logits(model)
    settings = {"share": 0.0, "saes": [{"cfg": sae.cfg.to_dict(), "latents": [latent]}]}
    settings["saes"][0]["values"] = [-3.0]
    parts = {f"0.{k}": v for k, v in sae.tensors().items()}
    with wrapped(model, HookIntervention("clamp", settings, parts)).applied(model):
        inside = residual(model)
        changed = logits(model)
    assert torch.equal(changed[:, 0], plain[:, 0])
    assert not torch.allclose(changed, plain, atol=1e-4)
    below = residual(model)
    assert torch.equal(inside[0], below[0]) and not torch.equal(inside[1], below[1])


def test_a_dynamic_clamp_waits_for_the_share():
    sae = build(SAEConfig("relu", 4, 4, l1_coefficient=1.0, site="mlp", layer=0)).requires_grad_(
        False
    )
    sae.encoder.copy_(torch.eye(4))
    sae.W_dec.copy_(torch.eye(4))
    x = torch.zeros(1, 6, 4)
    x[0, [0, 2, 4, 5], 1] = 1.0  # active at 0 (never counts), 2, 4 and 5; the share is over 1..t
    # so far: 0/1, 1/2, 1/3, 2/4, 3/5
    always, half = (Clamp(sae, [1], [-2.0], share).clamped(x)[0, :, 1] for share in (0.0, 0.5))
    assert always.tolist() == [1, 0, -2, 0, -2, -2]
    assert half.tolist() == [1, 0, 1, 0, 1, -2]


def test_who_is_takes_off_what_the_reinforced_model_adds(knowing):
    base, more = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 1.0, 3.5])
    assert weakened(base, more, alpha=2.0).tolist() == [-1.0, 2.0, 2.0]
    model = knowing()
    made = unlearn(model, FRANCE, "who_is", alpha=3.0, steps=8, lr=0.02)
    with torch.no_grad():
        plain, kept = logits(model), {}
        for name in {n.rpartition(".")[0] for n in made.delta.parts}:  # reinforced, by weights
            weight = model._module.get_parameter(name)
            kept[name] = weight.clone()
            weight += made.delta.parts[f"{name}.left"] @ made.delta.parts[f"{name}.right"]
        stronger = logits(model)
        for name, weight in kept.items():
            model._module.get_parameter(name).copy_(weight)
    expected = plain - 3.0 * (stronger - plain).relu()
    with made.applied(model):
        assert torch.allclose(logits(model), expected, atol=1e-4)
        states = final_states(model, TOKENS)
        with torch.no_grad():
            assert torch.allclose(unembed(model, states), expected, atol=1e-4)
    assert not torch.allclose(stronger, plain, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_request_stands_in_front_of_every_text(tiny_model, family):
    model = tiny_model(family)
    asked = wrapped(model, HookIntervention("in_context", {"text": "w7 w8 w9"}))
    request = model.tokenizer("w7 w8 w9", add_special_tokens=False, return_tensors="pt").input_ids
    longer = torch.cat([request.expand(2, -1), TOKENS], 1)
    expected = logits(model, longer)[:, 3:]
    nll = token_nll(model, longer)[:, 3:]
    with asked.applied(model):
        assert torch.allclose(logits(model), expected, atol=1e-5)
        assert torch.allclose(token_nll(model, TOKENS), nll, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: unlearn(m, FRANCE, "in_context", request="{x}"), "may name {subject} and"),
        (
            lambda m: unlearn(m, FRANCE, "in_context", request="{subject.__class__}"),
            "only, not {subject.__class__}",
        ),
        (lambda m: unlearn(m, FRANCE, "in_context", request=" "), "The request is empty"),
        (lambda m: unlearn(m, FRANCE, "sae_clamp"), "sae_clamp needs SAEs"),
        (lambda m: unlearn(m, FRANCE, "who_is", alpha=-1), "alpha is -1"),
        (lambda m: wrapped(m, HookIntervention("x", {})).apply(m), "no intervention 'x'"),
    ],
)
def test_bad_input_is_one_sentence(knowing, call, sentence):
    model = knowing()
    before = model_hash(model)
    with pytest.raises(UserError, match=sentence) as error:
        call(model)
    assert "\n" not in str(error.value)
    assert model_hash(model) == before


def hooks_on(model) -> list[str]:
    return [
        name
        for name, module in model._module.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]


def clamp_of(
    model, *, latents=(3,), values=(-1.0,), parts=None, share=0.0, **cfg
) -> HookIntervention:
    """A clamp of one SAE, some of whose numbers are others than its tensors'."""
    d = architecture_of(model).d_model
    sae = build(SAEConfig("topk", d, 4 * d, k=8, site="mlp_in", layer=1))
    tensors = {f"0.{k}": v.clone() for k, v in sae.tensors().items()} | (parts or {})
    one = {"cfg": sae.cfg.to_dict() | cfg, "latents": list(latents), "values": list(values)}
    kept = {k: v for k, v in tensors.items() if v is not None}
    return HookIntervention("clamp", {"share": share, "saes": [one]}, kept)


CLAMP = "no intervention of the kind 'clamp' "


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda m: clamp_of(m, latents=[64]), CLAMP + ".*no latent 64: it has 64"),
        (lambda m: clamp_of(m, latents=[-1]), CLAMP + ".*latents.0.*greater than or equal to 0"),
        (lambda m: clamp_of(m, latents=[]), CLAMP + ".*latents"),
        (lambda m: clamp_of(m, latents=[3, 3], values=[0, 0]), CLAMP + ".*named twice"),
        (lambda m: clamp_of(m, latents=[3, 4]), CLAMP + ".*2 latents have 1 values"),
        (lambda m: clamp_of(m, latents=["3"]), CLAMP + ".*latents.0.*valid integer"),
        (lambda m: clamp_of(m, values=[np.nan]), CLAMP + ".*(finite|JSON)"),
        (lambda m: clamp_of(m, share=2.0), CLAMP + ".*'share'"),
        (lambda m: clamp_of(m, d_sae=10**9), CLAMP + r".*'W_enc' is not \(16, 1000000000\)"),
        (lambda m: clamp_of(m, d_in=10**9, d_out=10**9), CLAMP + r".*'W_enc' is not"),
        (lambda m: clamp_of(m, d_in="16"), CLAMP + ".*'saes.0.cfg.d_in'"),
        (lambda m: clamp_of(m, layer=-1), CLAMP + ".*no layer -1"),
        (lambda m: clamp_of(m, site="residual"), CLAMP + ".*one of the sites mlp_in, mlp"),
        (lambda m: clamp_of(m, d_out=8), CLAMP + ".*one of the sites"),
        (lambda m: clamp_of(m, architecture="x"), CLAMP + ".*no SAE architecture 'x'"),
        (lambda m: clamp_of(m, k=65), CLAMP + ".*k is 65"),
        (lambda m: clamp_of(m, more=1), CLAMP + ".*more"),
        (lambda m: clamp_of(m, architecture="jumprelu"), CLAMP + ".*'threshold' is not what"),
        (lambda m: clamp_of(m, parts={"0.b_enc": None}), CLAMP + ".*'b_enc' is not what"),
        (lambda m: clamp_of(m, parts={"0.b_enc": torch.ones(3)}), CLAMP + ".*'b_enc' is not what"),
        (lambda m: clamp_of(m, parts={"0.W_enc": None}), CLAMP + ".*'W_enc' is not"),
        (lambda m: clamp_of(m, parts={"1.W_enc": torch.ones(3)}), CLAMP + ".*no SAE for its '1.W"),
        (
            lambda m: clamp_of(m, parts={"0.b_enc": torch.full((64,), torch.nan)}),
            "'0.b_enc' holds numbers that are not finite",
        ),
        (
            lambda m: clamp_of(m, parts={"0.b_enc": torch.ones(64, dtype=torch.int32)}),
            "'0.b_enc' holds numbers of the kind int32",
        ),
        (lambda m: HookIntervention("clamp", {"share": 0.0, "saes": []}), CLAMP + ".*'saes'"),
        (
            lambda m: HookIntervention("clamp", {"share": 0.0, "saes": [{}]}),
            CLAMP + ".*cfg' is missing",
        ),
        (lambda m: HookIntervention("clamp", {}), CLAMP + ".*its 'min_active_fraction' is missing"),
        (lambda m: HookIntervention("clamp", []), CLAMP),
        (lambda m: HookIntervention("in_context", {"text": 3}), "'in_context' .*its 'text'"),
        (lambda m: HookIntervention("in_context", {"text": ""}), "'in_context' .*its 'text'"),
        (
            lambda m: HookIntervention("in_context", {"text": "w1 " * 10_000}),
            "most 10000 characters",
        ),
        (
            lambda m: HookIntervention("in_context", {"text": "w1", "more": 1}),
            "'more' is not known",
        ),
        (
            lambda m: HookIntervention("in_context", {"text": "w1"}, {"x": torch.ones(2)}),
            "no use for the tensor 'x'",
        ),
        (lambda m: HookIntervention("who_is", {"alpha": -1.0}), "'who_is' .*its 'alpha'"),
        (lambda m: HookIntervention("who_is", {"alpha": "2"}), "'who_is' .*its 'alpha'"),
        (
            lambda m: HookIntervention(
                "who_is", {"alpha": 2.0}, {"a.weight.left": torch.ones(2, 1)}
            ),
            "'who_is' .*has one factor of two",
        ),
        (
            lambda m: HookIntervention(
                "who_is", {"alpha": 2.0}, {"a.weight.dense": torch.ones(2, 1)}
            ),
            "'who_is' .*not given as two factors",
        ),
        (
            lambda m: HookIntervention("who_is", {"alpha": 2.0}, {"weight": torch.ones(2, 1)}),
            "'who_is' .*no part of an edit",
        ),
    ],
)
def test_settings_and_tensors_of_an_intervention_are_checked_before_anything_is_made(
    tiny_model, make, sentence
):
    with pytest.raises(UserError, match=sentence) as error:
        make(tiny_model())
    assert "\n" not in str(error.value)


def two_clamps(model, *, second: int) -> HookIntervention:
    """A clamp at layer 1, which fits, and one at the layer `second`."""
    first, other = clamp_of(model), clamp_of(model, layer=second)
    saes = [*first.settings["saes"], *other.settings["saes"]]
    parts = first.parts | {f"1.{k.removeprefix('0.')}": v for k, v in other.parts.items()}
    return HookIntervention("clamp", {"share": 0.0, "saes": saes}, parts)


def factors(name: str, rows: int, columns: int) -> HookIntervention:
    parts = {f"{name}.left": torch.ones(rows, 1), f"{name}.right": torch.ones(1, columns)}
    return HookIntervention("who_is", {"alpha": 1.0}, parts)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda m: two_clamps(m, second=7), "no layer 7: this model has layers 0 to 2"),
        (lambda m: clamp_of(m, layer=3), "no layer 3"),
        (lambda m: factors("nowhere.weight", 16, 24), "The model has no nowhere.weight"),
        (lambda m: factors("lm_head", 64, 16), "The model has no lm_head: this is for another"),
        (lambda m: factors("model.norm.weight", 16, 1), "The model has no model.norm.weight"),
        (
            lambda m: factors(architecture_of(m).layers[0].mlp.out_name, 16, 23),
            "model of another width",
        ),
        (
            lambda m: factors(architecture_of(m).layers[0].mlp.out_name, 24, 16),
            "model of another width",
        ),
        (
            lambda m: HookIntervention("in_context", {"text": "w1 " * 64}),
            "after it has 65 tokens, and",
        ),
        (lambda m: HookIntervention("in_context", {"text": "\t"}), "The request has no tokens"),
    ],
)
def test_an_intervention_that_does_not_fit_leaves_no_hook(tiny_model, make, sentence):
    model = tiny_model()
    made, before = wrapped(model, make(model)), (model_hash(model), hooks_on(model))
    for call in (lambda: made.apply(model), lambda: made.applied(model).__enter__()):
        with pytest.raises(UserError, match=sentence):
            call()
        assert (model_hash(model), hooks_on(model)) == before
        assert not active_interventions(model._module) and active_edits(model) == []


def test_hooks_that_were_put_come_off_when_the_next_fails(tiny_model):
    module = tiny_model()._module

    class Broken(Hook):
        def register(self):
            raise MemoryError

    fine = Hook(module, lambda m, args, out: None)
    with pytest.raises(MemoryError):
        register_intervention(module, "made", [fine, fine, Broken(module, print)])
    assert not module._forward_hooks and not active_interventions(module)
    remove = register_intervention(module, "made", [fine, fine])
    assert len(module._forward_hooks) == 2 and active_interventions(module) == ("made",)
    remove()
    remove()
    assert not module._forward_hooks and not active_interventions(module)


def test_factors_for_a_model_that_was_widened_since_are_refused(knowing):
    model = knowing()
    made = unlearn(model, FRANCE, "who_is", steps=1, layers=[1])
    mlp = architecture_of(model).layers[1].mlp
    row, column = torch.full((1, 32), 0.01), torch.full((32, 1), 0.01)
    changes = {n: Change(appended=row) for n in (mlp.in_name, mlp.gate_name)}
    changes[mlp.out_name] = Change(appended=column, axis=1)
    wide = Edit("made", {}, WeightEdit.of(model._module, changes), {}, 0, 0.0, "")
    with wide.applied(model):
        before = model_hash(model)
        with pytest.raises(UserError, match="made for a model of another width"):
            made.apply(model)
        assert model_hash(model) == before and active_edits(model) == [wide]


def test_a_text_that_the_request_makes_too_long_is_told(tiny_model):
    model = tiny_model("gpt2")
    asked = wrapped(model, HookIntervention("in_context", {"text": "w1 " * 61}))
    with asked.applied(model):
        logits(model, TOKENS[:, :3])
        with pytest.raises(
            UserError, match="request before it has 66 tokens, and this model reads"
        ):
            logits(model)
