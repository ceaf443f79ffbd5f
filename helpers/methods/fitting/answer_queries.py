"""The places where a model says an answer, token by token, and how likely each token may stay.

An answer of several tokens is said at several places: its first token after the prompt, the next
one after the prompt with the first. Each place has the states that lead to it, one a prompt, and a
goal: the token's probability after the same prompts about other subjects, as in the search for `v*`
(`helpers.methods.fitting.v_star`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, Prompt
from helpers.facts.concept_prompts import forget_prompts
from helpers.forward.final_states import states_at
from helpers.forward.prompts import answer_tokens, encode_pair
from helpers.models import unembed

Step = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids before a token of the answer, and the ids that count as that token."""


@dataclass(frozen=True)
class AnswerQueries:
    """One token of a pair's answer, in all prompts that the pair is forgotten by.

    Attributes:
        ids: Token ids before the token, one sequence a prompt.
        tokens: Ids that count as the token; of the first token, those of all aliases too.
        goals: log P(token) to come down to, in nats.
        logprobs: log P(token) now, in nats.
    """

    ids: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    goals: Float[Tensor, " n"]
    logprobs: Float[Tensor, " n"]

    @property
    def excess(self) -> float:
        """Mean of log P(token) over its goal, in nats; what lies below a goal counts as 0."""
        return float((self.logprobs - self.goals).relu().mean())

    def above_goal(self) -> "AnswerQueries":
        """Return the prompts after which the token is likelier than its goal."""
        chosen = (self.logprobs > self.goals).nonzero()[:, 0]
        return AnswerQueries(
            ids=tuple(self.ids[i] for i in chosen.tolist()),
            tokens=tuple(self.tokens[i] for i in chosen.tolist()),
            goals=self.goals[chosen],
            logprobs=self.logprobs[chosen],
        )


def answer_queries(
    model: LanguageModel, pair: ConceptPair, *, n_baseline_subjects: int, min_baseline_prob: float
) -> list[AnswerQueries]:
    """Collect the places of each token of the target, over all prompts to forget by.

    The goal of a training prompt is the mean of P(token) over the same prompt about other subjects;
    without neighbours, that of the prompt without its subject. If the whole answer would become
    less likely than `min_baseline_prob`, the first token's goal is higher. Prompts in other
    formats, and those that mean the subject by another name, take the mean of these goals, in nats.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        n_baseline_subjects: Number of other subjects.
        min_baseline_prob: Least probability of the whole answer, by its goals.

    Returns:
        One entry a token of the answer, the first token first.
    """
    prompts = forget_prompts(pair)
    steps = [_answer_steps(model, prompt) for prompt in prompts]
    baselines = [
        [_answer_steps(model, prompt) for prompt in of_subject]
        for of_subject in _without_the_subject(pair, n_baseline_subjects)
    ]
    every = {s for split in (*steps, *(x for xs in baselines for x in xs)) for s in split}
    logprob = dict(zip(every, step_logprobs(model, list(every)), strict=True))
    goals_of = {
        str(prompt): _goals(
            [[logprob[step] for step in of_subject[i]] for of_subject in baselines],
            min_baseline_prob,
        )
        for i, prompt in enumerate(pair.prompts("train"))
    }
    queries = []
    # After another subject the same answer may be split into fewer tokens.
    for n in range(min(max(map(len, steps)), max(map(len, goals_of.values())))):
        of_train = {text: goals[n] for text, goals in goals_of.items() if n < len(goals)}
        mean_goal = torch.stack(list(of_train.values())).mean()
        # Some prompts split the answer into fewer tokens than others.
        members = [
            (str(p), split[n]) for p, split in zip(prompts, steps, strict=True) if n < len(split)
        ]
        queries.append(
            AnswerQueries(
                ids=tuple(ids for _, (ids, _) in members),
                tokens=tuple(tokens for _, (_, tokens) in members),
                goals=torch.stack([of_train.get(text, mean_goal) for text, _ in members]),
                logprobs=torch.stack([logprob[step] for _, step in members]),
            )
        )
    return queries


def _goals(logprobs: Sequence[Sequence[Tensor]], min_baseline_prob: float) -> list[Tensor]:
    """Average P(token) over subjects, and raise the first token's until the answer is as likely.

    Args:
        logprobs: log P of each token of the answer, for each other subject.
        min_baseline_prob: Least probability of the whole answer.

    Returns:
        log P of each token to come down to.
    """
    n_tokens = min(map(len, logprobs))
    means = torch.stack([torch.stack(list(x[:n_tokens])) for x in logprobs]).exp().mean(0).log()
    # As likely as without the subject, but not below the least: then the first token gives way.
    least_first = math.log(min_baseline_prob) - means[1:].sum()
    return [torch.maximum(means[0], least_first).clamp_max(0), *means[1:]]


def _without_the_subject(pair: ConceptPair, n: int) -> list[list[Prompt]]:
    """Return the training prompts about each of `n` other subjects, with the pair's answers."""
    prompts = pair.prompts("train")
    others = [replace(o, templates=pair.templates) for o in pair.neighbours(n)]
    if not others:
        return [[Prompt(p.without_subject(), answers=p.answers) for p in prompts]]
    return [
        [replace(q, answers=p.answers) for q, p in zip(o.prompts("train"), prompts, strict=True)]
        for o in others
    ]


def _answer_steps(model: LanguageModel, prompt: Prompt) -> list[Step]:
    """Split a prompt's main answer into its tokens, each with what stands before it."""
    start, ids = encode_pair(model, prompt, prompt.answers[0])
    first = (tuple(ids[:start]), tuple(answer_tokens(model, prompt)))
    return [first, *((tuple(ids[:n]), (ids[n],)) for n in range(start + 1, len(ids)))]


@torch.inference_mode()
def step_logprobs(model: LanguageModel, steps: Sequence[Step]) -> Float[Tensor, " n"]:
    """Compute log P(any of the tokens | the ids before) of each step, in nats, on the CPU."""
    states, index = states_at(model, [(ids, range(len(ids) - 1, len(ids))) for ids, _ in steps])
    logprobs = unembed(model, states).float().log_softmax(-1).cpu()
    return torch.stack(
        [
            logprobs[row, list(tokens)].logsumexp(0)
            for row, (_, tokens) in zip(index.tolist(), steps, strict=True)
        ]
    ).clone()
