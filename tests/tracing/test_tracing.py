"""Interventions: against plain forward passes, on every family, and on the real model."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers import tracing
from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import next_token_logprobs
from helpers.models import architecture_of, final_norm, unembed
from helpers.tracing import Patch, run_patched
from helpers.tracing.patching import logits_of

CLEAN = Prompt("w1 w2 w3 w4 w5", subject="w3", answers=(" w9",))
CORRUPT = Prompt("w1 w2 w7 w4 w5", subject="w7", answers=(" w8",))


def plain_logits(model, prompt) -> torch.Tensor:
    with torch.inference_mode():
        return model._module(torch.tensor([model.tokenizer(str(prompt)).input_ids])).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_neurons_and_residual_rebuild_the_models_output(tiny_model, family):
    model = tiny_model(family)
    activations = tracing.cache_activations(
        model, [CLEAN, Prompt("w3 w6", subject="w3")], sites=tracing.SITES
    )
    got = {site: tracing.stack_layers(activations, site) for site in tracing.SITES}
    arch = architecture_of(model)
    logits = unembed(model, final_norm(model, got["residual"][0, -1]))
    assert torch.allclose(logits, plain_logits(model, CLEAN)[-1], atol=1e-5)
    bias = getattr(arch.layers[0].mlp.out_module, "bias", None)
    written = got["neurons"] @ arch.layers[0].mlp.W_out().T
    assert torch.allclose(
        written[:, 0] + (0 if bias is None else bias), got["mlp"][:, 0], atol=1e-5
    )
    assert got["heads"].shape == (2, 3, arch.n_heads * arch.d_head)


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_whole_residual_gives_the_clean_run(tiny_model, family):
    """At any layer, replacing every position's residual by the clean one must give its answer."""
    model = tiny_model(family)
    table = tracing.activation_patching(
        model, CLEAN, CORRUPT, sites=["residual"], positions={"all": range(5)}
    )
    assert np.allclose(table["patching_effect"], 1, atol=1e-3)
    first = table = tracing.activation_patching(model, CLEAN, CORRUPT)
    assert set(first["position"]) == {"2", "3", "4"}  # nothing before the subject can matter
    last = table.query("site == 'residual' and layer == 2")
    assert np.allclose(
        last["patching_effect"], [0, 0, 1], atol=1e-3
    )  # only the last token is read out


@pytest.mark.parametrize("family", FAMILIES)
def test_skipping_lower_blocks_changes_nothing(tiny_model, family):
    """A batch that starts at the lowest patch equals one that an unrelated patch starts at 0."""
    model = tiny_model(family)
    ids = model.tokenizer(str(CLEAN)).input_ids
    zero = torch.zeros(1, 16)
    job = [Patch("mlp", 2, [3], zero)]
    untouched = [Patch("residual", 0, [], zero[:0])]
    alone = run_patched(model, ids, [job])
    together = run_patched(model, ids, [untouched, job])
    assert torch.allclose(alone[0], together[1], atol=1e-6)
    assert torch.allclose(logits_of(model, together)[0], plain_logits(model, CLEAN)[-1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_neuron_equals_the_weight_edit(tiny_model, family):
    """Silencing a neuron by intervention and by zeroing its value column is the same edit."""
    model = tiny_model(family)
    ids = model.tokenizer(str(CLEAN)).input_ids
    activations = tracing.cache_activations(model, [ids], sites=["neurons"], positions="all")
    silenced = activations["neurons", 1]
    silenced[:, 5] = 0
    state = run_patched(model, ids, [[Patch("neurons", 1, range(5), silenced)]])
    column = architecture_of(model).layers[1].mlp.W_out()[:, 5]
    with torch.no_grad():
        kept = column.clone()
        column.zero_()
        edited = plain_logits(model, CLEAN)[-1]
        column.copy_(kept)
    assert torch.allclose(logits_of(model, state)[0], edited, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_attribution_adds_up_to_the_logit(tiny_model, family):
    model = tiny_model(family)
    table = tracing.direct_logit_attribution(model, [CLEAN, CORRUPT])
    for index, prompt in enumerate((CLEAN, CORRUPT)):
        logits = plain_logits(model, prompt)[-1]
        answer = model.tokenizer(prompt.answers[0]).input_ids[0]
        bias = getattr(architecture_of(model).norm, "bias", None)
        head = architecture_of(model).head.weight
        offset = 0 if bias is None else (bias @ (head[answer] - head.mean(0))).item()
        got = table[table["prompt"] == index]["logit"].sum() + offset
        assert got == pytest.approx((logits[answer] - logits.mean()).item(), abs=1e-4)
    heads = tracing.head_attribution(model, [CLEAN])
    attention = table.query("prompt == 0 and site == 'attention'")["logit"].to_numpy()
    layer0 = architecture_of(model).layers[0].attention._module
    if getattr(layer0, "bias", None) is None:
        assert np.allclose(heads[0].sum(1), attention, atol=1e-4)


def test_logit_lens_ends_in_the_models_answer(tiny_model):
    model = tiny_model()
    lens = tracing.logit_lens(model, [CLEAN]).iloc[-1]
    logp = next_token_logprobs(model, [CLEAN])[0]
    answer = model.tokenizer(" w9").input_ids[0]
    assert lens["probability"] == pytest.approx(logp[answer].exp().item(), abs=1e-6)
    assert lens["rank"] == (logp > logp[answer]).sum().item()


def test_zero_ablation_by_hand(tiny_model):
    model = tiny_model()
    got = tracing.ablation(model, [CLEAN], sites=["mlp"], layers=[1], position="last")
    logp = next_token_logprobs(model, [CLEAN])[0]
    answer = model.tokenizer(" w9").input_ids[0]
    with torch.inference_mode(), model.trace(torch.tensor([model.tokenizer(str(CLEAN)).input_ids])):
        architecture_of(model).layers[1].mlp_write.output[:, -1] = 0
        logits = model.output.logits[0, -1].save()
    expected = logits.log_softmax(-1)[answer] - logp[answer]
    assert got["change"].item() == pytest.approx(expected.item(), abs=1e-5)
    mean = tracing.ablation(model, [CLEAN], sites=["mlp"], layers=[1], reference=[CLEAN])
    assert mean["change"].item() == pytest.approx(0, abs=1e-5)  # its own mean changes nothing


def test_value_readout_names_the_tokens_a_planted_column_writes(tiny_model):
    model = tiny_model()
    head = architecture_of(model).head.weight
    with torch.no_grad():
        architecture_of(model).layers[2].mlp.W_out()[:, 7] = head[20] - head.mean(0)
    readout = tracing.top_logit_tokens(model, 2, [7], k=1)[0]
    assert readout["promotes"] == [model.tokenizer.decode([20])]
    prompt = Prompt("w1", answers=(" w16",))  # w16 is token 20
    best, other = tracing.target_ranks(model, prompt, 2, [7, 3])
    assert best == 0 < other
    driven_backwards = tracing.target_ranks(model, prompt, 2, [3, 7], signs=torch.tensor([1, -1]))
    assert driven_backwards[0] == other and driven_backwards[1] > 0


def test_contrasts_pair_prompts_of_one_shape_with_different_answers(tiny_model):
    model = tiny_model()
    prompts = [
        Prompt(f"w1 {s} w2", subject=s, answers=(a,))
        for s, a in [("w3", " w9"), ("w4", " w9"), ("w5", " w8"), ("w6 w7", " w8")]
    ]
    pairs = tracing.clean_corrupted_pairs(model, prompts, prompts)
    assert [c.subject for c, _ in pairs] == ["w3", "w4", "w5"]  # "w6 w7" is longer than all others
    assert all(a.answers != b.answers for a, b in pairs)
    with pytest.raises(UserError, match="there is none"):
        tracing.clean_corrupted_pairs(model, prompts[3:], prompts)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m: tracing.cache_activations(m, [CLEAN], sites=["mlp"], layers=[3]),
            "no layer 3.*0 to 2",
        ),
        (lambda m: tracing.cache_activations(m, [CLEAN], sites=["nowhere"]), "no site 'nowhere'"),
        (
            lambda m: tracing.cache_activations(m, [CLEAN], sites=["mlp"], positions="middle"),
            "no position 'middle'",
        ),
        (lambda m: tracing.activation_patching(m, CLEAN, CLEAN), "are the same"),
        (lambda m: tracing.activation_patching(m, CLEAN, Prompt("w1")), "as many tokens"),
        (lambda m: tracing.top_logit_tokens(m, 0, [24]), "no neuron 24"),
        (
            lambda m: tracing.activation_patching(
                m, CLEAN, Prompt("w1 w2 w7 w4 w5", answers=(" w9",))
            ),
            "same token",
        ),
    ],
)
def test_bad_input_is_told_in_one_sentence(tiny_model, call, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        call(tiny_model())
    assert "\n" not in str(caught.value)


def test_patching_france_into_italy_moves_paris(smollm):
    """In the real model: where the fact sits and who moves it."""
    clean = ConceptPair("France", "Paris").prompts("train")[0]
    corrupt = ConceptPair("Italy", "Rome").prompts("train")[0]
    assert str(clean) == "The capital of France is"
    table = tracing.activation_patching(smollm, clean, corrupt)
    share = table.set_index(["site", "layer", "tokens"])["patching_effect"]
    first, *later = (share["mlp", i, " France"] for i in range(30))
    assert first > 0.9 and first > 2 * max(later)  # the first MLP tells subjects apart
    moved = share["attention", slice(None), " is"]
    assert moved.max() > 0.9  # one block's attention hands the answer over
    last = int(moved.idxmax())
    assert share["residual", last - 1, " France"] > 0.9 > 0.1 > share["residual", last, " France"]
    heads = tracing.activation_patching(
        smollm, clean, corrupt, by_head=True, positions={"last": [4]}, layers=[last]
    )
    mover = heads.loc[heads["patching_effect"].idxmax()]
    assert mover["patching_effect"] > 0.8
    path = tracing.path_patching(smollm, clean, corrupt, receiver=(last, int(mover["head"])))
    assert path.query("layer == -1")["patching_effect"].item() > 0.8
