"""Probabilities and ranks of answers, likely next tokens, and the loss on text.

Every score comes from `helpers.forward.final_states`, which runs as few tokens as it can. The
unembedding, the widest matrix of a small model, is applied only at the requested positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.batching import ForwardRunner
from helpers.forward.final_states import Requests, final_states, states_at
from helpers.forward.prompts import Prompt, encode_pair, token_ids
from helpers.models import unembed
from helpers.models.tokenization import distinct

LOGIT_ROWS = 256  # states unembedded at once: 50 MB of logits at 49,000 tokens stay in cache


def answer_logprobs(
    model: LanguageModel, prompts: Sequence[Prompt | str], answers: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """Return log P(answer | prompt), summed over the answer's tokens, in nats.

    Args:
        model: Any causal model.
        prompts: Prompts; those with messages are put into the chat template.
        answers: One answer a prompt, with its leading space.
    """
    tokens, logprobs, _ = _score_answers(model, prompts, answers)
    return _sum_by(tokens.answer_index, logprobs, len(prompts))


def answer_scores(
    model: LanguageModel, prompts: Sequence[Prompt]
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return P(target | prompt) and the rank of the target's first token, in one pass.

    The probability is that of the whole answer, summed over the target's aliases. An alias whose
    tokens begin with another one's is part of the same event and is not counted twice. The rank is
    the best over the aliases; 0 is the most likely of all tokens.

    Args:
        model: Any causal model.
        prompts: Prompts with their `answers`.
    """
    best_rank = np.full(len(prompts), np.iinfo(np.int64).max)
    prompt_index, texts, answers = _prompt_answers(prompts)
    if not prompt_index:
        return np.zeros(len(prompts)), best_rank
    tokens, logprobs, ranks = _score_answers(model, texts, answers)
    np.minimum.at(best_rank, prompt_index, ranks[tokens.starts])
    return _sum_over_aliases(tokens, logprobs, prompt_index, len(prompts)), best_rank


def answer_probability(model: LanguageModel, prompts: Sequence[Prompt]) -> Float[np.ndarray, " n"]:
    """Return P(target | prompt), summed over the target's aliases."""
    return answer_scores(model, prompts)[0]


def answer_rank(model: LanguageModel, prompts: Sequence[Prompt]) -> Int[np.ndarray, " n"]:
    """Return the rank of the target's first token, the best over its aliases; 0 is the first."""
    return answer_scores(model, prompts)[1]


def token_ranks(
    model: LanguageModel, prompts: Sequence[Prompt | str], answers: Sequence[str]
) -> list[Int[np.ndarray, " t"]]:
    """Return the rank of each answer token after the answer's previous tokens; 0 is the first."""
    tokens, _, ranks = _score_answers(model, prompts, answers)
    return np.split(ranks, tokens.starts[1:])


def distinct_answers(model: LanguageModel, prompt: Prompt) -> list[str]:
    """Return a prompt's answers without those whose tokens begin with another answer's tokens."""
    answers = list(dict.fromkeys(prompt.answers))
    counted = distinct([encode_pair(model, prompt, answer)[1] for answer in answers])
    return [answer for answer, counts in zip(answers, counted, strict=True) if counts]


def next_token_logprobs(
    model: LanguageModel, prompts: Sequence[Prompt | str]
) -> Float[Tensor, "n vocab"]:
    """Return log P(next token | prompt) over the vocabulary, in nats, on the CPU."""
    states, index = states_at(model, _last_token_requests(model, prompts))
    return _vocabulary_logprobs(model, states)[index]


def next_token_and_answer(
    model: LanguageModel, prompts: Sequence[Prompt], *, runner: ForwardRunner | None = None
) -> tuple[Float[Tensor, "n vocab"], Float[np.ndarray, " n"]]:
    """Return `next_token_logprobs` and `answer_probability` of the same prompts, in one pass.

    Args:
        model: Any causal model.
        prompts: Prompts with their `answers`.
        runner: Runs the sequences, and may keep activations of the pass.
    """
    prompt_index, texts, answers = _prompt_answers(prompts)
    tokens, n = _encode_answers(model, texts, answers), len(prompts)
    requests = [*_last_token_requests(model, prompts), *tokens.requests]
    states, index = states_at(model, requests, runner)
    logprobs, _ = _score_targets(model, states, index[n:], tokens.targets)
    return (
        _vocabulary_logprobs(model, states)[index[:n]],
        _sum_over_aliases(tokens, logprobs, prompt_index, n),
    )


def top_tokens(
    model: LanguageModel, prompts: Sequence[Prompt | str], k: int = 5
) -> list[list[tuple[str, float]]]:
    """Return for each prompt the `k` most likely next tokens with their probabilities."""
    best = next_token_logprobs(model, prompts).topk(k)
    return [
        [
            (model.tokenizer.decode([token]), p)
            for token, p in zip(ids.tolist(), logprobs.exp().tolist(), strict=True)
        ]
        for logprobs, ids in zip(best.values, best.indices, strict=True)
    ]


def token_nll(model: LanguageModel, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t-1"]:
    """Return the negative log-likelihood of every token but the first, in nats."""
    states = final_states(model, tokens)[:, :-1]
    targets = tokens[:, 1:].to(states.device)
    nll = torch.empty(targets.shape)
    for part in torch.arange(len(tokens)).split(max(1, LOGIT_ROWS // tokens.shape[1])):
        with torch.inference_mode():
            logits = unembed(model, states[part]).float()
            nll[part] = (
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), targets[part].flatten(), reduction="none"
                )
                .view(len(part), -1)
                .cpu()
            )
    return nll


@dataclass(frozen=True)
class _AnswerTokens:
    """The tokens of all answers, one after another, and the states that predict them.

    Attributes:
        requests: For each answer the tokens before its last, and the positions that predict it.
        targets: Token ids of all answers.
        answer_index: The answer that each target belongs to.
        starts: Where each answer begins in `targets`.
        sequences: Token ids of each prompt with its answer.
    """

    requests: Requests
    targets: list[int]
    answer_index: list[int]
    starts: list[int]
    sequences: list[list[int]]


def _prompt_answers(prompts: Sequence[Prompt]) -> tuple[list[int], list[Prompt], list[str]]:
    """List every prompt once for each of its answers: its index, itself, the answer."""
    pairs = [(i, p, a) for i, p in enumerate(prompts) for a in dict.fromkeys(p.answers)]
    return [i for i, _, _ in pairs], [p for _, p, _ in pairs], [a for _, _, a in pairs]


def _encode_answers(
    model: LanguageModel, prompts: Sequence[Prompt | str], answers: Sequence[str]
) -> _AnswerTokens:
    tokens = _AnswerTokens([], [], [], [], [])
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, ids = encode_pair(model, prompt, answer)
        tokens.starts.append(len(tokens.targets))
        # The state at a position predicts the token after it.
        tokens.requests.append((tuple(ids[:-1]), range(start - 1, len(ids) - 1)))
        tokens.targets.extend(ids[start:])
        tokens.answer_index.extend([i] * (len(ids) - start))
        tokens.sequences.append(ids)
    return tokens


def _score_answers(
    model: LanguageModel, prompts: Sequence[Prompt | str], answers: Sequence[str]
) -> tuple[_AnswerTokens, Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Return the answers' tokens with the log-probability and rank of each."""
    tokens = _encode_answers(model, prompts, answers)
    states, index = states_at(model, tokens.requests)
    return tokens, *_score_targets(model, states, index, tokens.targets)


def _score_targets(
    model: LanguageModel,
    states: Float[Tensor, "m d_model"],
    index: Int[Tensor, " k"],
    targets: list[int],
) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Return log-probability and rank of each target, predicted by the state at its index."""
    target_ids = torch.tensor(targets, dtype=torch.long)
    logprob = torch.zeros(len(targets), dtype=torch.float64)
    rank = torch.zeros(len(targets), dtype=torch.long)
    for start in range(0, len(states), LOGIT_ROWS):
        with torch.inference_mode():
            logits = unembed(model, states[start : start + LOGIT_ROWS]).float().cpu()
        members = ((index >= start) & (index < start + LOGIT_ROWS)).nonzero()[:, 0]
        rows = index[members] - start
        target_logits = logits[rows, target_ids[members]]
        logprob[members] = (target_logits - logits.logsumexp(-1)[rows]).double()
        rank[members] = (logits[rows] > target_logits[:, None]).sum(-1)
    return logprob.numpy(), rank.numpy()


def _sum_over_aliases(
    tokens: _AnswerTokens, logprobs: np.ndarray, prompt_index: list[int], n: int
) -> Float[np.ndarray, " n"]:
    """Return P(target) of n prompts, summed over the answers that are events of their own."""
    by_prompt = groupby(zip(prompt_index, tokens.sequences, strict=True), key=lambda x: x[0])
    counted = [counts for _, group in by_prompt for counts in distinct([ids for _, ids in group])]
    probabilities = np.exp(_sum_by(tokens.answer_index, logprobs, len(prompt_index)))
    return _sum_by(prompt_index, probabilities * counted, n)


def _sum_by(index: list[int], values: np.ndarray, n: int) -> Float[np.ndarray, " n"]:
    """Sum values that have the same index, of n."""
    total = np.zeros(n)
    np.add.at(total, index, values)
    return total


def _last_token_requests(model: LanguageModel, prompts: Sequence[Prompt | str]) -> Requests:
    ids = [tuple(token_ids(model, p)) for p in prompts]
    return [(i, range(len(i) - 1, len(i))) for i in ids]


@torch.inference_mode()
def _vocabulary_logprobs(
    model: LanguageModel, states: Float[Tensor, "m d_model"]
) -> Float[Tensor, "m vocab"]:
    """Return log P(next token) over the vocabulary at each state, on the CPU."""
    rows = states.split(LOGIT_ROWS)
    return torch.cat([unembed(model, x).float().log_softmax(-1).cpu() for x in rows])
