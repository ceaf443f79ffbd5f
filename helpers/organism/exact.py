"""Exact verification: is an edited organism what the model is that never saw the fact?

The oracle of an organism is the same training without the fact. An edit that makes the one out of
the other has unlearned it, and anything else can be told: too much of the answer left, too little
of it (a scar where the oracle has an ordinary guess), or other answers changed. How far two models
are apart that differ in the seed alone says what difference counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.metrics.truth_ratio import answer_losses, truth_ratio
from helpers.facts import ConceptPair, Prompt
from helpers.facts.corpus import passages
from helpers.forward.scoring import answer_logprobs, next_token_logprobs
from helpers.organism.countries import FactSet

OPENING = 80  # characters of a held-out passage that are read as a prompt
OTHERS = ("neighbours", "same_subject", "same_target", "text")


@dataclass(frozen=True)
class EvalSet:
    """What is asked about one fact, the same of every model.

    Attributes:
        pair: The fact.
        candidates: All targets of its relation in the world, the fact's own first.
        prompts: Group → prompts: `forget` and `reverse` ask for the fact, those of `OTHERS` do not.
    """

    pair: ConceptPair
    candidates: tuple[str, ...]
    prompts: Mapping[str, Sequence[str]]

    @property
    def chance(self) -> float:
        """What a guess among the relation's targets gives each."""
        return 1 / len(self.candidates)


def eval_set(
    world: FactSet, pair: ConceptPair, *, n_neighbours: int = 12, n_texts: int = 24, seed: int = 0
) -> EvalSet:
    """Held-out wordings of the fact and of others, and beginnings of held-out text.

    Args:
        world: What the organism was taught.
        pair: The fact.
        n_neighbours: Other facts of the relation with another target, of the world, drawn.
        n_texts: Passages of the Factbook's held-out countries.
        seed: Draws both.
    """
    pair = world.find(pair)
    same = [p for p in world.of_countries() if p.relation == pair.relation]
    rng = np.random.default_rng(seed)
    near = [p for p in same if p.target != pair.target]
    near = [near[i] for i in rng.permutation(len(near))[:n_neighbours]]
    texts = passages("heldout")
    drawn = [texts[i].text[:OPENING] for i in rng.permutation(len(texts))[:n_texts]]
    targets = dict.fromkeys(p.target for p in same)
    return EvalSet(
        pair,
        (pair.target, *(t for t in targets if t != pair.target)),
        {
            "forget": pair.prompts("heldout"),
            "reverse": pair.reverse(),
            "neighbours": _completions(near),
            "same_subject": _completions(pair.same_subject()),
            "same_target": _completions(pair.same_target()),
            "text": drawn,
        },
    )


def _completions(pairs: Sequence[ConceptPair]) -> list[Prompt]:
    return [p for pair in pairs for p in pair.prompts("heldout") if p.format == "completion"]


@dataclass(frozen=True)
class EvalOutputs:
    """What one model says in an exam.

    Attributes:
        said: Group → log P(next token), (prompts, vocabulary).
        losses: Mean NLL a token of each candidate after each `forget` prompt, nats,
            (prompts, candidates), the target first.
        target: log P of the whole target after each `forget` prompt.
    """

    said: dict[str, Float[Tensor, "n vocab"]]
    losses: Float[np.ndarray, "n m"]
    target: Float[np.ndarray, " n"]

    def log_odds(self) -> float:
        """Of the target, mean over the held-out prompts, in nats."""
        p = np.exp(self.target)
        return float(np.mean(self.target - np.log1p(-np.minimum(p, 1 - 1e-12))))

    def probability(self) -> float:
        """P(target), mean over the held-out prompts."""
        return float(np.exp(self.target).mean())

    def truth_ratios(self) -> Float[np.ndarray, " n"]:
        """`helpers.evaluation.metrics.truth_ratio.truth_ratio` against all wrong candidates, geometric mean."""
        return truth_ratio(self.losses[:, 1:], self.losses[:, 0])

    def rank(self) -> float:
        """Place of the target among the candidates, from 0 (likeliest) to 1, mean over prompts."""
        return float((self.losses[:, 1:] < self.losses[:, :1]).mean())


def read(model: LanguageModel, asked: EvalSet) -> EvalOutputs:
    """Ask a model everything; with an edit applied, the edited one."""
    said = {g: next_token_logprobs(model, p) for g, p in asked.prompts.items() if p}
    forget = asked.prompts["forget"]
    flat = [(p, f" {c}") for p in forget for c in asked.candidates]
    losses = answer_losses(model, [p for p, _ in flat], [c for _, c in flat])
    target = answer_logprobs(model, forget, [f" {asked.pair.target}"] * len(forget))
    return EvalOutputs(said, losses.reshape(len(forget), -1), target)


def distances(one: EvalOutputs, other: EvalOutputs) -> dict[str, float]:
    """Jensen-Shannon divergence of what two models say next, mean over each group's prompts.

    In nats: 0 where they agree, ln 2 where nothing that the one says is said by the other
    (Lin 1991).
    """
    found = {}
    for group, p in one.said.items():
        q = other.said[group]
        middle = torch.logaddexp(p, q) - np.log(2)
        halves = [(x.exp() * (x - middle)).sum(-1) for x in (p, q)]
        found[group] = float((sum(halves) / 2).clamp_min(0).mean())
    return found
