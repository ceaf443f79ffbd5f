"""Evaluation prompts: which prompts measure forgetting, and which measure retention."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.facts import ConceptPair, Prompt
from helpers.facts.comparison import compared_facts
from helpers.facts.known import KNOWN_PROB, known_subjects
from helpers.forward.scoring import answer_probability
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.io.safe_text import name_pattern
from helpers.models import model_hash

RETAINED = ("neighbours", "same_subject", "same_target", "must_stay")


@dataclass(frozen=True)
class EvalPrompt:
    """One prompt of an evaluation, and the group and fact that it counts for.

    Attributes:
        group: `own`, `paraphrases`, `reverse`, or one of `RETAINED`.
        fact: Index of the fact within its group; prompts of one fact are averaged.
        prompt: The prompt.
    """

    group: str
    fact: int
    prompt: Prompt


def efficacy_prompts(pair: ConceptPair, split: str) -> list[EvalPrompt]:
    """List prompts on the pair itself: the training prompts, those of `split`, and the reverse."""
    groups = {
        "own": pair.prompts("train"),
        "paraphrases": pair.prompts(split),
        "reverse": pair.reverse(),
    }
    return [
        EvalPrompt(group, i, prompt)
        for group, prompts in groups.items()
        for i, prompt in enumerate(prompts)
    ]


def retention_prompts(
    model: LanguageModel, pair: ConceptPair, split: str, *, n_neighbours: int, seed: int
) -> list[EvalPrompt]:
    """List prompts on facts that must stay.

    These are known neighbours, and all other facts of the subject and of the target, each by its
    completions of `split`. Each `must_stay` prompt of the pair is a fact by itself.

    Args:
        model: The original model, which decides which neighbours are known.
        pair: The fact that is forgotten.
        split: The split whose templates are used.
        n_neighbours: Number of known neighbours.
        seed: Draws the neighbours.
    """
    groups = {
        "neighbours": known_neighbours(model, pair, n=n_neighbours, seed=seed, split=split),
        "same_subject": pair.same_subject(),
        "same_target": pair.same_target(),
    }
    prompts = [
        EvalPrompt(group, i, prompt)
        for group, pairs in groups.items()
        for i, fact in enumerate(pairs)
        for prompt in fact.prompts(split)
        if prompt.format == "completion"
    ]
    return prompts + [EvalPrompt("must_stay", i, p) for i, p in enumerate(pair.must_stay)]


def names_target(pair: ConceptPair, text: str) -> bool:
    """Tell whether a text has the target or an alias in it, as whole words in any case."""
    pattern = re.compile(name_pattern(pair.target, *pair.aliases).pattern, re.IGNORECASE)
    return bool(pattern.search(text))  # Male: not female


def known_neighbours(
    model: LanguageModel, pair: ConceptPair, *, n: int, seed: int = 0, split: str = "train"
) -> list[ConceptPair]:
    """Draw neighbours of the pair that the model knows.

    Args:
        model: The original model.
        pair: The pair whose neighbours are drawn.
        n: Largest number of neighbours.
        seed: Draws the neighbours.
        split: The split whose prompts are used. For `train`, `known_facts` decides; for others the
            mean P(answer) on them has to be at least `KNOWN_PROB` too, since the ratio after /
            before of less shows nothing.
    """
    known = known_subjects(model, pair)
    if split != "train":
        known &= _known_in_split(
            model, [p for p in compared_facts(pair) if p.subject in known], split
        )
    neighbours = [p for p in pair.neighbours() if p.subject in known]
    order = np.random.default_rng(seed).permutation(len(neighbours))[:n]
    return [neighbours[i] for i in order]


def _known_in_split(model: LanguageModel, pairs: Sequence[ConceptPair], split: str) -> set[str]:
    """Select subjects whose target has a mean probability of at least `KNOWN_PROB` in a split."""
    prompts = [p for pair in pairs for p in pair.statements(split)]
    key = {
        "model": model_hash(model),
        "prompts": [[str(p), p.answers] for p in prompts],
        "code": code_hash(__file__),
    }

    def build() -> pd.DataFrame:
        p = answer_probability(model, prompts)
        mean = p.reshape(len(pairs), -1).mean(1)
        return pd.DataFrame({"subject": [pair.subject for pair in pairs], "p": mean})

    if not prompts:
        return set()
    table = cached_table("facts-known-in-split", key, build)
    return set(table[table["p"] >= KNOWN_PROB]["subject"])
