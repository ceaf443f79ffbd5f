"""Metrics against values worked by hand, and their edge cases."""

import numpy as np
import pytest
import torch

from helpers.errors import UserError
from helpers.evaluation.attacks import control_facts
from helpers.evaluation.metrics.depth_score import unlearning_depth, unlearning_depth_score
from helpers.evaluation.metrics.fluency import ngram_entropy, repetition
from helpers.evaluation.metrics.linear_probe import linear_probe, rank_score
from helpers.evaluation.metrics.memorization import (
    exact_memorisation,
    extraction_strength,
    likeliest_matches,
)
from helpers.evaluation.metrics.mia import (
    TokenStatistics,
    gradient_score,
    loss_score,
    min_k_plus_score,
    min_k_score,
    token_statistics,
    zlib_score,
)
from helpers.evaluation.metrics.truth_ratio import (
    forget_quality,
    truth_ratio,
    truth_ratios,
)
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import answer_logprobs, token_nll
from helpers.methods.controls.logit_suppression import logit_suppression


def test_truth_ratio_by_hand():
    wrong, right = np.log([[2.0, 8.0]]), np.log([2.0])  # p: 1/2 and 1/8 against 1/2
    assert truth_ratio(wrong, right) == pytest.approx(1 / 4 * 2)  # the geometric mean
    with pytest.raises(UserError, match="at least one wrong"):
        truth_ratio(np.zeros((1, 0)), right)


def test_truth_ratio_of_a_model_is_normalised_by_length(tiny_model):
    model = tiny_model()
    prompt = Prompt("w1 w2", answers=(" w3 w4",))
    (got,) = truth_ratios(model, [prompt], [" w5", " w6 w7 w8"])
    losses = [-answer_logprobs(model, ["w1 w2"], [a])[0] for a in (" w3 w4", " w5", " w6 w7 w8")]
    right, one, three = losses[0] / 2, losses[1], losses[2] / 3
    assert got == pytest.approx(np.exp(right - (one + three) / 2), rel=1e-4)


def test_forget_quality_is_the_ks_test():
    same = np.linspace(0, 1, 20)
    assert forget_quality(same, same) == pytest.approx(1.0)
    # five against five, fully apart: 2 of the 252 ways to mix them
    assert forget_quality(np.arange(5.0), np.arange(5.0) + 10) == pytest.approx(2 / 252)
    with pytest.raises(UserError, match="never learned"):
        forget_quality(same, np.array([]))


@pytest.mark.parametrize(
    ("matches", "exact", "strength"),
    [
        ([True], 1.0, 1.0),
        ([False], 0.0, 0.0),  # a wrong one-token answer
        ([False, False, False], 0.0, 0.0),
        ([True, True, True, False], 0.75, 0.0),
        ([True, False, True, True], 0.75, 0.5),
        ([False, True, True, True], 0.75, 0.75),
    ],
)
def test_memorisation_by_hand(matches, exact, strength):
    assert exact_memorisation(np.array(matches)) == exact
    assert extraction_strength(np.array(matches)) == strength


def test_memorisation_of_nothing_is_told():
    for metric in (exact_memorisation, extraction_strength):
        with pytest.raises(UserError, match="no token"):
            metric(np.array([], bool))


def test_a_model_memorises_its_own_greedy_text(tiny_model):
    model = tiny_model()
    ids = model.tokenizer("w1 w2").input_ids
    with torch.inference_mode():
        for _ in range(3):
            ids.append(int(model._module(torch.tensor([ids])).logits[0, -1].argmax()))
    words = [model.tokenizer.decode([t]) for t in ids[-3:]]
    said = " " + " ".join(words)
    other = "w9" if words[1] != "w9" else "w8"
    found = likeliest_matches(model, ["w1 w2"] * 2, [said, f" {words[0]} {other}"])
    assert [m.tolist() for m in found] == [[True] * 3, [True, False]]


def test_membership_scores_by_hand():
    logprob = np.log([[0.5, 0.25, 0.5, 0.125, 0.5]])
    assert loss_score(logprob) == pytest.approx(-np.log(2) * (1 + 2 + 1 + 3 + 1) / 5)
    assert min_k_score(logprob, k=0.4) == pytest.approx(-np.log(2) * 2.5)
    assert min_k_score(logprob, k=0.01) == pytest.approx(-np.log(2) * 3)  # at least one token
    found = TokenStatistics(
        np.array([[-1.0, -2.0, -3.0]]), np.array([[-2.0, -2.0, -2.0]]), np.array([[0.5, 0.0, 0.5]])
    )
    assert min_k_plus_score(found, k=0.34) == pytest.approx(-2.0)  # z: 2, 0 (no spread), -2
    with pytest.raises(UserError, match="share of the tokens"):
        min_k_score(logprob, k=0)


def test_zlib_divides_by_what_the_text_compresses_to():
    import zlib

    logprob = np.full((2, 4), -2.0)
    texts = ["a" * 400, "the quick brown fox jumps over a lazy dog " * 2]
    sizes = [len(zlib.compress(t.encode())) for t in texts]
    assert zlib_score(logprob, texts) == pytest.approx([-2.0 / s for s in sizes])


def test_token_statistics_are_those_of_the_distribution(tiny_model):
    model = tiny_model()
    tokens = torch.randint(4, 64, (2, 6), generator=torch.Generator().manual_seed(0))
    found = token_statistics(model, tokens)
    assert np.allclose(found.logprob, -token_nll(model, tokens).numpy(), atol=1e-5)
    with torch.inference_mode():
        logp = model._module(tokens).logits[:, :-1].double().log_softmax(-1)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    spread = (p * (logp - mean[..., None]) ** 2).sum(-1).sqrt()
    assert np.allclose(found.mean, mean.numpy(), atol=1e-4)
    assert np.allclose(found.deviation, spread.numpy(), atol=1e-4)


def test_gradient_score_is_the_norm_by_autograd(tiny_model):
    model = tiny_model()
    tokens = torch.randint(4, 64, (1, 6), generator=torch.Generator().manual_seed(0))
    (got,) = gradient_score(model, tokens)
    module = model._module.requires_grad_(True)
    logits = module(tokens).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).backward()
    squares = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
    module.requires_grad_(False)
    assert got == pytest.approx(-(squares**0.5), rel=1e-4)


def test_repetition_and_entropy_by_hand():
    assert repetition(["a", "b", "c", "d", "e"]) == 0.0
    assert repetition(["a", "b", "a", "b", "a", "b"], n=2) == pytest.approx(1 - 2 / 5)
    assert repetition(["a", "a", "a", "a", "a", "a", "a"]) == pytest.approx(1 - 1 / 4)
    assert repetition(["a"]) == 0.0
    assert ngram_entropy(["a", "a", "a", "a"]) == 0.0
    assert ngram_entropy([]) == 0.0
    # four different bigrams (2 bits), three different trigrams
    expected = (2 / 3 * 2 + 4 / 3 * np.log2(3)) / 2
    assert ngram_entropy(["a", "b", "c", "d", "e"]) == pytest.approx(expected)
    with pytest.raises(UserError, match="at least one word"):
        repetition(["a"], n=0)


def test_depth_score_by_hand():
    reference = np.array([0.01, 1.0, 2.0, 1.0])  # the first layer says nothing
    assert unlearning_depth_score(reference, np.zeros(4)) == 0.0
    assert unlearning_depth_score(reference, reference) == 1.0
    # half of 1, more than all of 2 (clipped), less than nothing of 1
    assert unlearning_depth_score(reference, np.array([5.0, 0.5, 9.0, -1.0])) == 2.5 / 4
    with pytest.raises(UserError, match="No layer"):
        unlearning_depth_score(np.zeros(3), np.ones(3))


@pytest.mark.slow
def test_hiding_in_the_last_layer_has_no_depth(smollm):
    pair = ConceptPair("France", "Paris")
    controls = control_facts(smollm, pair, n=6)
    hidden = logit_suppression(smollm, pair)
    with hidden.applied(smollm):
        depth = unlearning_depth(smollm, pair, controls)
    assert depth.reference.max() > 1  # another country's state does harm
    assert depth.score == pytest.approx(0.0, abs=0.02)


def test_probe_finds_a_linear_map_and_its_control_does_not():
    torch.manual_seed(0)
    W = torch.randn(8, 8)
    x, answers = torch.randn(60, 8), torch.randn(30, 8)
    truth = torch.arange(60) % 30
    states = answers[truth] @ W + 0.05 * x
    taught, asked = slice(0, 50), slice(50, 60)
    real = rank_score(states[taught], answers[truth[taught]], states[asked], answers, truth[asked])
    assert real.mean() > 0.95
    mixed = answers[truth[taught]][torch.randperm(50)]
    control = rank_score(states[taught], mixed, states[asked], answers, truth[asked])
    assert control.mean() < 0.8
    assert ((real >= 0) & (real <= 1)).all()


def test_probe_reads_every_layer(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    table = linear_probe(model, pair)
    assert sorted(table["layer"].unique()) == [0, 1, 2]
    assert table[["score", "permuted"]].stack().between(0, 1).all()
    with pytest.raises(UserError, match="at least 4"):
        linear_probe(model, pair, n_subjects=3)
