"""Scores against plain one-at-a-time computations with the model's own logits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from helpers.errors import UserError
from helpers.forward import batching, final_states, scoring
from helpers.forward.batching import prefix_groups
from helpers.forward.generation import greedy
from helpers.forward.prompts import Prompt
from helpers.models.tokenization import encode


def with_answers(text: str, answers: tuple[str, ...]) -> Prompt:
    return Prompt(text, answers=answers)


def slow_logprob(model, prompt: str, answer: str) -> float:
    """One sequence, all logits, no batching."""
    start = len(encode(model.tokenizer, prompt))
    ids = encode(model.tokenizer, prompt + answer)
    with torch.inference_mode():
        logp = model._module(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logp[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_answers_equal_one_at_a_time(tiny_model, family):
    model = tiny_model(family)
    prompts = ["w1 w2 w3", "w4", "w1 w2", "w5 w6 w7 w8 w9", "w1 w2 w3"]
    answers = [" w7", " w1 w2 w3", " w3 w4", " w2", " w7 w8"]
    got = scoring.answer_logprobs(model, prompts, answers)
    expected = [slow_logprob(model, p, a) for p, a in zip(prompts, answers, strict=True)]
    assert np.allclose(got, expected, atol=1e-5)


def test_small_batches_give_the_same(tiny_model, monkeypatch):
    model = tiny_model()
    prompts = [f"w{i} w{i + 1} " + "w3 " * (i % 4) + "w9" for i in range(20)]
    answers = [" w1 w2" if i % 2 else " w5" for i in range(20)]
    whole = scoring.answer_logprobs(model, prompts, answers)
    monkeypatch.setattr(
        batching.bucket_by_length, "__kwdefaults__", {"max_tokens": 8, "n_passes": 1}
    )
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 3)
    assert np.allclose(scoring.answer_logprobs(model, prompts, answers), whole, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_beginnings_change_no_score(tiny_model, family):
    """Prompts of one template run after a cached beginning, others alone; both must agree."""
    model = tiny_model(family)
    prompts = [f"w1 w2 w3 w4 w{i}" + " w9" * (i % 3) for i in range(10, 30)] + ["w5 w6"]
    prompts.append("w1 w2 w3")  # lies inside the beginning that the others share
    answers = [" w7", " w1 w2"] * 11
    got = scoring.answer_logprobs(model, prompts, answers)
    expected = [slow_logprob(model, p, a) for p, a in zip(prompts, answers, strict=True)]
    assert np.allclose(got, expected, atol=1e-5)


def test_prefix_groups_share_as_much_as_pays(monkeypatch):
    sequences = [(1, 2, 3, i) for i in range(4, 9)] + [(1, 9, 9), (7,), (1, 2, 3, 4, 5)]
    sequences.remove((1, 2, 3, 4))
    assert [shared for shared, _ in prefix_groups(sequences)] == [0]  # twelve tokens are too few
    monkeypatch.setattr(batching, "MIN_PREFIX_SAVING", 12)
    groups = {
        shared: sorted(sequences[i] for i in group) for shared, group in prefix_groups(sequences)
    }
    assert groups[3] == [(1, 2, 3, 4, 5), (1, 2, 3, 5), (1, 2, 3, 6), (1, 2, 3, 7), (1, 2, 3, 8)]
    assert groups[0] == [(1, 9, 9), (7,)]
    assert list(prefix_groups([])) == []


def test_no_other_groups_have_fewer_tokens_to_run(monkeypatch):
    """Against every way to cut the sorted sequences."""
    monkeypatch.setattr(batching, "MIN_PREFIX_SAVING", 3)
    rng = np.random.default_rng(0)

    def cost(group):
        shared = min(len(s) for s in group) - 1
        shared = min(shared, *(batching.common_prefix_length(group[0], s) for s in group))
        alone = sum(map(len, group))
        return min(alone, alone - (len(group) - 1) * shared + 3)

    for _ in range(20):
        drawn = {tuple(rng.integers(0, 2, rng.integers(1, 7)).tolist()) for _ in range(8)}
        whole = sorted(drawn)
        cuts = [
            [0, *(i for i in range(1, len(whole)) if mask >> i & 1), len(whole)]
            for mask in range(0, 2 ** len(whole), 2)
        ]
        least = min(sum(cost(whole[a:b]) for a, b in pairwise(cut)) for cut in cuts)
        groups = list(prefix_groups(whole))
        assert sorted(i for _, group in groups for i in group) == list(range(len(whole)))
        for shared, group in groups:
            assert len({whole[i][:shared] for i in group}) == 1
            assert min(len(whole[i]) for i in group) > shared
        found = sum(
            sum(len(whole[i]) - shared for i in group) + shared + 3 * bool(shared)
            for shared, group in groups
        )
        assert found == least


def test_probability_sums_aliases_but_counts_no_event_twice(tiny_model):
    model = tiny_model()
    prompt = with_answers("w1 w2", (" w3", " w4 w5", " w3 w6"))  # " w3 w6" is part of " w3"
    expected = np.exp(slow_logprob(model, "w1 w2", " w3"))
    expected += np.exp(slow_logprob(model, "w1 w2", " w4 w5"))
    assert scoring.answer_probability(model, [prompt]) == pytest.approx(expected, abs=1e-6)
    assert scoring.answer_probability(model, []).shape == (0,)


def test_an_alias_that_begins_with_another_as_text_only_counts(tiny_model):
    """ " w30" begins with the letters of " w3", and is another token."""
    model = tiny_model()
    prompt = with_answers("w1 w2", (" w3", " w30", " w3 w6"))
    expected = sum(np.exp(slow_logprob(model, "w1 w2", a)) for a in (" w3", " w30"))
    assert scoring.answer_probability(model, [prompt]) == pytest.approx(expected, abs=1e-6)
    _, told = scoring.next_token_and_answer(model, [prompt])
    assert told == pytest.approx(expected, abs=1e-6)
    assert scoring.distinct_answers(model, prompt) == [" w3", " w30"]


def test_answers_of_the_same_tokens_count_once(tiny_model):
    model = tiny_model()
    prompt = with_answers("w1 w2", (" w3", "  w3", " w3"))
    expected = np.exp(slow_logprob(model, "w1 w2", " w3"))
    assert scoring.answer_probability(model, [prompt]) == pytest.approx(expected, abs=1e-6)


def test_a_prompt_that_becomes_part_of_the_answer_is_told(tiny_model):
    with pytest.raises(UserError, match="Nothing stands before the first token of 'w10'"):
        scoring.answer_logprobs(tiny_model(), ["w1"], ["0"])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_is_longer_than_what_the_model_reads(tiny_model, family):
    model = tiny_model(family)
    full, long = " ".join(["w1"] * 64), " ".join(["w1"] * 65)
    scoring.next_token_logprobs(model, [full])
    scoring.answer_logprobs(model, [full], [" w2"])  # its last token is not read
    assert len(greedy(model, [full])) == 1
    told = "has 65 tokens, and this model reads 64 at once"
    for ask in (
        lambda: scoring.next_token_logprobs(model, [long]),
        lambda: scoring.top_tokens(model, [long]),
        lambda: scoring.answer_logprobs(model, [long], [" w2"]),
        lambda: scoring.answer_logprobs(model, [full], [" w2 w3"]),
        lambda: scoring.answer_scores(model, [with_answers(long, (" w2",))]),
        lambda: greedy(model, [long]),
        lambda: final_states.final_states(model, torch.full((1, 65), 5)),
        lambda: scoring.token_nll(model, torch.full((1, 65), 5)),
    ):
        with pytest.raises(UserError, match=told):
            ask()


def test_a_text_read_after_a_cached_beginning_is_no_longer_either(tiny_model):
    model = tiny_model("gpt2")
    ids = (5,) * 60
    _, cache = final_states._run_prefix(model, ids)
    final_states._run(model, torch.full((2, 4), 6), ids, cache)
    with pytest.raises(UserError, match="has 65 tokens"):
        final_states._run(model, torch.full((2, 5), 6), ids, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ends_where_the_model_reads_no_further(tiny_model, family):
    model = tiny_model(family)
    model._module.generation_config.eos_token_id = None
    short, near, full = ("w1 " * n + "w2" for n in (3, 60, 63))
    said = greedy(model, [short, near, full, near], max_new_tokens=6)
    ids = encode(model.tokenizer, near)
    for _ in range(64 + 1 - 61):
        with torch.inference_mode():
            ids.append(model._module(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert said[1] == said[3] == model.tokenizer.decode(ids[61:], skip_special_tokens=True)
    assert said[0] == greedy(model, [short], max_new_tokens=6)[0]
    assert said[2] == greedy(model, [full], max_new_tokens=1)[0]


def test_rank_is_the_best_aliases_first_token(tiny_model):
    model = tiny_model()
    order = scoring.next_token_logprobs(model, ["w1 w2"])[0].argsort(descending=True)
    second, tenth = (model.tokenizer.decode([order[i]]) for i in (1, 9))
    assert scoring.answer_rank(model, [with_answers("w1 w2", (f" {tenth}",))]).tolist() == [9]
    both = with_answers("w1 w2", (f" {tenth}", f" {second}"))
    assert scoring.answer_rank(model, [both]).tolist() == [1]


def test_next_tokens_and_answers_of_one_pass_are_those_of_two(tiny_model):
    model = tiny_model()
    prompts = [
        with_answers("w1 w2", (" w3", " w4 w5", " w3 w6")),
        with_answers("w1 w2 w3", ()),
        with_answers("w9", (" w1",)),
    ]
    following, told = scoring.next_token_and_answer(model, prompts)
    assert torch.allclose(following, scoring.next_token_logprobs(model, prompts), atol=1e-5)
    assert np.allclose(told, scoring.answer_probability(model, prompts), atol=1e-6)
    assert told[1] == 0 < told[0]
    _, silent = scoring.next_token_and_answer(model, prompts[1:2])
    assert silent.tolist() == [0]


def test_greedy_continues_as_argmax_by_hand(tiny_model):
    model = tiny_model()
    prompts = ["w1 w2", "w3 w4 w5 w6"]
    expected = []
    for prompt in prompts:
        ids = encode(model.tokenizer, prompt)
        start = len(ids)
        for _ in range(4):
            with torch.inference_mode():
                ids.append(model._module(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == model.tokenizer.eos_token_id:
                break
        expected.append(model.tokenizer.decode(ids[start:], skip_special_tokens=True))
    assert greedy(model, prompts, max_new_tokens=4) == expected


def test_token_nll_is_cross_entropy_of_the_next_token(tiny_model):
    model = tiny_model()
    tokens = torch.randint(4, 60, (5, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logp = model._module(tokens).logits.log_softmax(-1)
    expected = -logp[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(scoring.token_nll(model, tokens), expected, atol=1e-5)


def test_empty_prompts_and_answers_are_refused(tiny_model):
    model = tiny_model()
    with pytest.raises(UserError, match="empty prompt"):
        scoring.answer_logprobs(model, [""], [" w1"])
    with pytest.raises(UserError, match="adds no token"):
        scoring.answer_logprobs(model, ["w1"], [""])


def test_the_real_model_says_paris_as_transformers_says_it(smollm):
    prompt = with_answers("The capital of France is", (" Paris",))
    ids = smollm.tokenizer(f"{prompt} Paris", return_tensors="pt").input_ids
    with torch.no_grad():
        plain = smollm._module(ids[:, :-1]).logits[0, -1].softmax(-1)
    told = scoring.answer_probability(smollm, [prompt])[0]
    assert told == pytest.approx(plain[ids[0, -1]].item(), rel=1e-4)
    assert scoring.answer_rank(smollm, [prompt]).tolist() == [0]
