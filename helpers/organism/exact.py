"""Exact verification: outputs of an edited organism and of its oracle on the same prompts.

The oracle of an organism is the same training without the fact. An edit that turns the organism
into the oracle has unlearned the fact. Anything else can be measured: too much of the answer left,
too little of it (over-forgetting, where the oracle has an ordinary guess), or other answers
changed. The difference between two models that differ in the seed alone says which difference
counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.metrics.prediction_distance import js_divergence, log_odds
from helpers.evaluation.metrics.truth_ratio import answer_losses, truth_ratio
from helpers.facts import ConceptPair, Prompt
from helpers.facts.corpus import passages
from helpers.forward.scoring import answer_logprobs, next_token_logprobs
from helpers.organism.countries import FactSet

PROMPT_CHARACTERS = 80  # of a held-out passage that are a prompt
OTHER_GROUPS = ("neighbours", "same_subject", "same_target", "text")


@dataclass(frozen=True)
class EvalSet:
    """Prompts about one fact, the same for every model.

    Attributes:
        pair: The fact.
        candidates: All targets of its relation in the fact set, the fact's own first.
        prompts: Group → prompts: `forget` and `reverse` are about the fact, those of `OTHER_GROUPS`
            are not.
    """

    pair: ConceptPair
    candidates: tuple[str, ...]
    prompts: Mapping[str, Sequence[Prompt | str]]

    @property
    def chance(self) -> float:
        """Probability of each candidate in a uniform guess."""
        return 1 / len(self.candidates)


def eval_set(
    fact_set: FactSet,
    pair: ConceptPair,
    *,
    n_neighbours: int = 12,
    n_texts: int = 24,
    seed: int = 0,
) -> EvalSet:
    """Collect held-out prompts of the fact and of others, and beginnings of held-out text.

    Args:
        fact_set: The facts that the organism was trained on.
        pair: The fact.
        n_neighbours: Other facts of the relation with another target, of the fact set.
        n_texts: Passages of the Factbook's held-out countries.
        seed: Draws both.

    Raises:
        UserError: The fact set has no such fact.
    """
    pair = fact_set.find(pair)
    same_relation = [p for p in fact_set.of_countries() if p.relation == pair.relation]
    rng = np.random.default_rng(seed)
    neighbours = [p for p in same_relation if p.target != pair.target]
    neighbours = [neighbours[i] for i in rng.permutation(len(neighbours))[:n_neighbours]]
    texts = passages("heldout")
    order = rng.permutation(len(texts))[:n_texts]
    targets = dict.fromkeys(p.target for p in same_relation)
    return EvalSet(
        pair,
        (pair.target, *(t for t in targets if t != pair.target)),
        {
            "forget": pair.prompts("heldout"),
            "reverse": pair.reverse(),
            "neighbours": _completions(neighbours),
            "same_subject": _completions(pair.same_subject()),
            "same_target": _completions(pair.same_target()),
            "text": [texts[i].text[:PROMPT_CHARACTERS] for i in order],
        },
    )


def _completions(pairs: Sequence[ConceptPair]) -> list[Prompt]:
    return [p for pair in pairs for p in pair.statements("heldout")]


@dataclass(frozen=True)
class EvalOutputs:
    """Outputs of one model on an `EvalSet`.

    Attributes:
        next_token: Group → log P(next token), (prompts, vocabulary).
        losses: Mean NLL a token of each candidate after each `forget` prompt, nats,
            (prompts, candidates), the target first.
        target: log P of the whole target after each `forget` prompt, (prompts,).
    """

    next_token: dict[str, Float[Tensor, "n vocab"]]
    losses: Float[np.ndarray, "n m"]
    target: Float[np.ndarray, " n"]

    def log_odds(self) -> float:
        """Compute the target's log-odds, mean over the held-out prompts, in nats."""
        return float(np.mean(log_odds(self.target)))

    def probability(self) -> float:
        """Compute P(target), mean over the held-out prompts."""
        return float(np.exp(self.target).mean())

    def truth_ratios(self) -> Float[np.ndarray, " n"]:
        """Compute truth ratios against the geometric mean of all wrong candidates."""
        return truth_ratio(self.losses[:, 1:], self.losses[:, 0])

    def rank(self) -> float:
        """Compute the target's rank among candidates, from 0 (likeliest) to 1, mean of prompts."""
        return float((self.losses[:, 1:] < self.losses[:, :1]).mean())


def compute_outputs(model: LanguageModel, evals: EvalSet) -> EvalOutputs:
    """Compute a model's outputs as it is, with the edits that are applied.

    Args:
        model: An organism.
        evals: The prompts.
    """
    next_token = {g: next_token_logprobs(model, p) for g, p in evals.prompts.items() if p}
    forget = evals.prompts["forget"]
    flat = [(p, f" {c}") for p in forget for c in evals.candidates]
    losses = answer_losses(model, [p for p, _ in flat], [c for _, c in flat])
    target = answer_logprobs(model, forget, [f" {evals.pair.target}"] * len(forget))
    return EvalOutputs(next_token, losses.reshape(len(forget), -1), target)


def divergences(a: EvalOutputs, b: EvalOutputs) -> dict[str, float]:
    """Compute the Jensen-Shannon divergence of next tokens, mean over each group's prompts.

    In nats: 0 for equal distributions, ln 2 for disjoint ones (Lin 1991).

    Returns:
        Group → divergence.
    """
    means = {}
    for group, p in a.next_token.items():
        means[group] = float(js_divergence(p, b.next_token[group]).mean())
    return means
