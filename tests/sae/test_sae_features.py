"""Detection of concepts by single units, and what latents do: against plain reference code."""

import re

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.facts.corpus import passages
from helpers.forward.activations import cache_activations
from helpers.models import final_norm, unembed
from helpers.sae import SAEConfig, build
from helpers.sae.concept_tokens import (
    ConceptTokens,
    cache_token_activations,
    concept_tokens,
    mention_counts,
    with_leading_word,
)
from helpers.sae.features import (
    ablation_effects,
    decoder_directions,
    latent_attribution,
    latent_contributions,
)
from helpers.sae.probing import (
    f1_score,
    lda_directions,
    score_units,
    select_and_evaluate,
    with_negated,
)
from helpers.sae.splitting import feature_absorption, feature_splitting
from helpers.stats.auroc import auroc_by_unit
from helpers.tracing import Patch, run_patched
from helpers.tracing.neurons import direction_logit_tokens, direction_target_ranks


def plain_f1(values: np.ndarray, labels: np.ndarray) -> float:
    """The best F1 over every threshold that leaves something out."""
    best = 0.0
    for threshold in np.unique(values)[1:]:
        predicted = values >= threshold
        best = max(best, 2 * (predicted & labels).sum() / (predicted.sum() + labels.sum()))
    return best


@pytest.mark.parametrize("levels", [1, 3, 1000], ids=["constant", "many ties", "few ties"])
def test_scores_equal_plain_ones_for_every_unit_and_concept(levels):
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(levels, (40, 7), generator=draw).float()
    labels = torch.zeros(3, 40)
    for concept in range(3):
        labels[concept, torch.randperm(40, generator=draw)[: 2 + 5 * concept]] = 1
    got = score_units(values, labels)
    for c in range(3):
        members = labels[c].bool()
        assert torch.allclose(got.auroc[c], auroc_by_unit(values[members], values[~members]))
        for u in range(7):
            expected = plain_f1(values[:, u].numpy(), members.numpy())
            assert got.f1[c, u].item() == pytest.approx(expected, abs=1e-6)
            if expected:
                predicted = (values[:, u] >= got.threshold[c, u]).float()
                assert f1_score(predicted, labels[c]).item() == pytest.approx(expected, abs=1e-6)


def test_units_are_chosen_on_training_data_and_judged_on_held_out():
    """Unit 0 is right by luck on training data, unit 1 on held-out data: the luck must show."""
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    train = torch.tensor([[2.0, 0.0], [2.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    held = train.flip(1)
    got = select_and_evaluate(score_units(train, labels), held, labels).iloc[0]
    assert (got["unit"], got["train_auroc"], got["auroc"]) == (0, 1.0, 0.5)
    assert (got["f1_unit"], got["train_f1"], got["f1"]) == (0, 1.0, 0.0)
    only = select_and_evaluate(score_units(train, labels), held, labels, candidates=np.array([1]))
    assert (only.iloc[0]["unit"], only.iloc[0]["auroc"]) == (1, 1.0)


def test_a_unit_that_is_low_on_the_concept_counts_with_its_sign_turned():
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    values = torch.tensor([[-1.0], [0.0], [3.0]])
    assert score_units(with_negated(values), labels).auroc.tolist() == [[0.0, 1.0]]


def test_a_concept_without_sightings_is_told():
    with pytest.raises(UserError, match="missing for a concept"):
        score_units(torch.zeros(3, 2), torch.zeros(1, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_sightings_are_read_as_captured(tiny_model, family):
    model = tiny_model(family)
    prompts = [Prompt("w1 w2 w3 w4", subject="w3"), Prompt("w5 w3", subject="w3")]
    ids = tuple(tuple(model.tokenizer(str(p)).input_ids) for p in prompts)
    seen = ConceptTokens(
        ("w3",),
        ids,
        np.array([0, 1, 1]),
        np.array([2, 1, 0]),
        np.array([0, 0, -1]),
        np.array(["template", "template", "passage"]),
    )
    got = cache_token_activations(model, seen, sites={"mlp_in": [1], "neurons": [0, 2]})
    assert set(got) == {("mlp_in", 1), ("neurons", 0), ("neurons", 2)}
    for (site, layer), values in got.items():
        expected = cache_activations(
            model, prompts, sites=[site], layers=[layer], positions="subject"
        )
        assert torch.allclose(values[:2], expected[site, layer], atol=1e-5)
    assert seen.labels().tolist() == [[1, 1, 0]]


def test_passages_are_cut_at_the_name_and_longer_names_are_not_mistaken(smollm):
    pairs = [ConceptPair(s, t) for s, t in (("Guinea", "Conakry"), ("Niger", "Niamey"))]
    prompts = {p.subject: p.prompts("train")[:2] for p in pairs}
    prompts["Equatorial Guinea"] = []
    prompts["Nigeria"] = []
    seen = concept_tokens(smollm.tokenizer, prompts, split="train", n_mentions=5)
    assert (seen.concept == -1).sum() > 10
    for i in range(len(seen)):
        text = seen.text(smollm.tokenizer, i)
        if seen.concept[i] < 0:
            continue
        name = seen.names[seen.concept[i]]
        assert text.endswith(name)
        if name == "Guinea":
            assert not text.endswith("Equatorial Guinea")
    again = concept_tokens(smollm.tokenizer, prompts, split="train", n_mentions=5)
    assert again.ids == seen.ids and (again.position == seen.position).all()
    held = concept_tokens(smollm.tokenizer, prompts, split="heldout", n_mentions=5)
    assert not set(held.ids[4:]) & set(seen.ids[4:])


def tiny_sae(site: str, layer: int = 1, width: int = 16, **numbers):
    cfg = SAEConfig("topk", width, 30, k=5, site=site, layer=layer, **numbers)
    return build(cfg).requires_grad_(False)


ABOUT = [
    Prompt("w1 w2 w3 w4 w5", subject="w3", answers=(" w9",)),
    Prompt("w1 w3 w4 w6 w7 w8", subject="w3", answers=(" w9",)),
    Prompt("w3 w6", subject="w3", answers=(" w9",)),  # the first token: nothing to attribute
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["mlp_in", "mlp", "residual"])
def test_attribution_is_the_derivative_of_ablation(tiny_model, family, site):
    """A latent made tiny: what the gradient says must be what taking it away does."""
    model = tiny_model(family)
    sae = tiny_sae(site)
    table = latent_attribution(model, sae, ABOUT)
    assert set(table["prompt"]) == {0, 1}
    for index in (0, 1):
        part = table[table["prompt"] == index]
        strongest = part.loc[part["activation"].idxmax()]
        scale = 1e-2
        small = tiny_sae(site)
        small.W_dec.copy_(sae.W_dec * scale)  # the same latent, writing little
        latent = int(strongest["latent"])
        change = ablation_effects(model, small, ABOUT[index], [[latent], []])
        assert change[1] == pytest.approx(0, abs=1e-6)
        assert -change[0] / scale == pytest.approx(strongest["effect"], rel=0.05, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_latent_writes_is_what_its_ablation_takes_from_the_mlp(tiny_model, family):
    model = tiny_model(family)
    sae = tiny_sae("mlp_in")
    sae.b_enc.fill_(1.0)  # all are positive, so that the chosen one is active
    ids = model.tokenizer(str(ABOUT[0])).input_ids
    sites = ["mlp_in", "mlp", "residual"]
    states = cache_activations(model, [ids], sites=sites, layers=[1], positions="all")
    x = states["mlp_in", 1][2:3]
    latent = int(sae.encode(x)[0].argmax())
    value = x - sae.encode(x)[0, latent] * sae.W_dec[latent]
    job = [Patch("mlp_in", 1, [2], value)]
    after = run_patched(model, ids, [job], read=("mlp", 1, 2))
    expected = states["mlp", 1][2] - after[0]
    assert torch.allclose(latent_contributions(model, sae, x, [latent])[0], expected, atol=1e-5)
    at_output = tiny_sae("mlp")
    y = states["mlp", 1][2:3]
    latent = int(at_output.encode(y)[0].argmax())
    expected = at_output.encode(y)[0, latent] * at_output.W_dec[latent]
    assert torch.allclose(
        latent_contributions(model, at_output, y, [latent])[0], expected, atol=1e-6
    )


def test_readout_ranks_tokens_as_the_unembedding_does(tiny_model):
    model = tiny_model()
    direction = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    logits = unembed(model, final_norm(model, direction))
    got = direction_logit_tokens(model, direction, k=3)
    for row, tokens in zip(logits, got, strict=True):
        order = row.argsort(descending=True).tolist()
        assert tokens["promotes"] == [model.tokenizer.decode([t]) for t in order[:3]]
        assert tokens["suppresses"] == [model.tokenizer.decode([t]) for t in order[:-4:-1]]
    answer = model.tokenizer(" w9").input_ids[-1]
    expected = (logits > logits[:, answer, None]).sum(1).numpy()
    assert (direction_target_ranks(model, ABOUT[0], direction).numpy() == expected).all()


def test_decoder_rows_at_the_mlps_input_are_freed_of_the_norms_weight(tiny_model):
    model = tiny_model("llama")
    norm = model._module.model.layers[1].post_attention_layernorm
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    sae = tiny_sae("mlp_in")
    got = decoder_directions(model, sae, [3])
    assert torch.allclose(got * norm.weight, sae.W_dec[[3]], atol=1e-6)
    assert torch.equal(decoder_directions(model, tiny_sae("residual"), [3]), sae.W_dec[[3]])


def test_a_split_concept_needs_several_latents():
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0])
    z = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    got = feature_splitting(z, labels, [0, 1], [1.0, 1.0])
    assert got["recall"].tolist() == pytest.approx([2 / 3, 1])
    assert got["f1"].tolist() == pytest.approx([0.8, 1])


def test_absorption_is_a_miss_that_another_latent_carries():
    sae = tiny_sae("mlp", width=2)
    sae.W_dec.zero_()
    sae.W_dec[0], sae.W_dec[1] = torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.6])
    z = torch.zeros(4, 30)
    z[0, 0], z[1, 0] = 1.0, 1.0  # predicted by the main latent
    z[2, 1] = 1.0  # missed, carried by latent 1; the fourth is missed and carried by none
    got = feature_absorption(z, sae, torch.ones(4), 0, 0.5, torch.tensor([2.0, 0.0]))
    assert got == {"missed": 0.5, "absorbed": 0.25}


def test_saes_of_another_model_and_transcoders_are_refused(tiny_model):
    model = tiny_model()
    with pytest.raises(UserError, match="another model"):
        latent_attribution(model, tiny_sae("mlp", model_hash="0" * 16, model="other"), ABOUT)
    with pytest.raises(UserError, match="transcoder"):
        ablation_effects(model, tiny_sae("mlp_in", target="mlp"), ABOUT[0], [[0]])


def test_discriminants_separate_what_no_single_coordinate_does():
    draw = torch.Generator().manual_seed(0)
    common = 5 * torch.randn(300, 1, generator=draw)
    x = torch.cat([common, common], 1) + 0.1 * torch.randn(300, 2, generator=draw)
    labels = torch.zeros(1, 300)
    labels[0, :30] = 1
    x[:30, 0] += 1  # to be seen only in the difference of the two
    found = lda_directions(x, labels, ridge=1e-4)
    plain, better = score_units(x, labels), score_units(x @ found, labels)
    assert plain.auroc.max() < 0.7 and better.auroc[0, 0] > 0.99


def test_a_subject_that_stands_first_gets_a_word_before_it(tiny_model):
    tokenizer = tiny_model().tokenizer
    first = with_leading_word(
        Prompt("w3 w6", subject="w3", answers=(" w9",), format="list"), tokenizer
    )
    assert str(first) == "Fact: w3 w6" and first.answers == (" w9",) and first.format == "list"
    assert with_leading_word(ABOUT[0], tokenizer) is ABOUT[0]


def test_names_are_counted_as_whole_words():
    counts = mention_counts(["Niger", "Nigeria", "Guinea", "Equatorial Guinea"], "train")
    assert all(n > 0 for n in counts.values())
    text = "\n".join(p.text for p in passages("train"))
    assert counts["Nigeria"] == len(re.findall(r"\bNigeria\b(?!-)", text))
    only = mention_counts(["Guinea"], "train")["Guinea"]
    assert counts["Guinea"] + counts["Equatorial Guinea"] == only
