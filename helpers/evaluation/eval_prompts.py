"""What an unlearning is asked: which prompts stand for which claim."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.facts import ConceptPair, Prompt, facts, known_facts
from helpers.facts.relations import RELATIONS
from helpers.forward.scoring import answer_probability
from helpers.io.cache import cached_table
from helpers.io.safe_text import name_pattern
from helpers.models import model_hash

KNOWN = 0.1  # a fact counts as known before when its mean probability is at least this
RETAINED = ("neighbours", "same_subject", "same_target", "must_stay")


@dataclass(frozen=True)
class EvalPrompt:
    """One prompt, and what it counts for.

    Attributes:
        group: `own`, `paraphrases`, `reverse`, or one of `RETAINED`.
        fact: Number of the fact within its group; prompts of one fact are averaged.
        prompt: The prompt.
    """

    group: str
    fact: int
    prompt: Prompt


def efficacy_prompts(pair: ConceptPair, split: str) -> list[EvalPrompt]:
    """The pair itself: the edit's own prompts, paraphrases of `split`, and the reverse."""
    groups = {
        "own": pair.prompts("train"),
        "paraphrases": pair.prompts(split),
        "reverse": pair.reverse(),
    }
    return [EvalPrompt(g, i, p) for g, prompts in groups.items() for i, p in enumerate(prompts)]


def retention_prompts(
    model: LanguageModel, pair: ConceptPair, split: str, *, n_neighbours: int, seed: int
) -> list[EvalPrompt]:
    """What has to stay: known neighbours, and all other facts of the subject and of the target.

    Each fact is asked by its completions of `split`. A pair's own `must_stay` prompts are facts by
    themselves.

    Args:
        model: The original model, which says which neighbours are known.
        pair: What is forgotten.
        split: Whose templates.
        n_neighbours: So many known neighbours, drawn by `seed`.
        seed: Draws them.
    """
    groups = {
        "neighbours": known_neighbours(model, pair, n=n_neighbours, seed=seed, split=split),
        "same_subject": pair.same_subject(),
        "same_target": pair.same_target(),
    }
    found = [
        EvalPrompt(group, i, prompt)
        for group, pairs in groups.items()
        for i, fact in enumerate(pairs)
        for prompt in fact.prompts(split)
        if prompt.format == "completion"
    ]
    return found + [EvalPrompt("must_stay", i, p) for i, p in enumerate(pair.must_stay)]


def names_target(pair: ConceptPair, text: str) -> bool:
    """Whether a text has the target or one of its aliases in it, as whole words in any case."""
    named = re.compile(name_pattern(pair.target, *pair.aliases).pattern, re.IGNORECASE)
    return bool(named.search(text))  # Male: not female


def known_neighbours(
    model: LanguageModel, pair: ConceptPair, *, n: int, seed: int = 0, split: str = "train"
) -> list[ConceptPair]:
    """Neighbours of the pair that the model knows, `n` drawn by `seed`.

    Args:
        model: The original model.
        pair: Whose neighbours.
        n: How many at most.
        seed: Draws them.
        split: In whose wordings: `train` as `known_facts`; of others the mean P(answer) has to be
            at least `KNOWN` too, since a share that is left of less says nothing.
    """
    if pair.relation not in RELATIONS:
        return []
    known = set(known_facts(model, pair.relation).query("known")["subject"])
    if split != "train":
        known &= _told(model, pair.relation, known, split)
    neighbours = [p for p in pair.neighbours() if p.subject in known]
    order = np.random.default_rng(seed).permutation(len(neighbours))[:n]
    return [neighbours[i] for i in order]


def _told(model: LanguageModel, relation: str, subjects: set[str], split: str) -> set[str]:
    """Those whose target has a mean probability of at least `KNOWN` in a split's completions."""
    pairs = [ConceptPair.of(f) for f in facts(relation) if f.subject in subjects]
    asked = [[p for p in pair.prompts(split) if p.format == "completion"] for pair in pairs]
    key = {"model": model_hash(model), "asked": [[str(p), p.answers] for a in asked for p in a]}

    def build() -> pd.DataFrame:
        p = answer_probability(model, [p for ways in asked for p in ways])
        mean = p.reshape(len(pairs), -1).mean(1)
        return pd.DataFrame({"subject": [pair.subject for pair in pairs], "p": mean})

    if not pairs:
        return set()
    return set(cached_table("told-facts", key, build).query("p >= @KNOWN")["subject"])
