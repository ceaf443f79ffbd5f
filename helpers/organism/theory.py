"""Measures of superposition: concepts that share a neuron, and the cost of deleting neurons."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.scorecard import evaluate
from helpers.evaluation.tradeoff_summary import harmonic_mean
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_scores
from helpers.methods import unlearn
from helpers.models import architecture_of
from helpers.organism.concept_units import ConceptActivations, concepts_per_unit
from helpers.organism.countries import FactSet
from helpers.organism.recipe import Recipe
from helpers.organism.text import sentences
from helpers.organism.tokens import TokenizedText

MIN_ACTIVATION = 1e-3  # of the largest mean activation: neurons that stay below are not counted
GROUPS = {
    "paraphrases": "the fact",
    "neighbours": "neighbours",
    "same_subject": "subject's other facts",
}


def knowledge(
    model: LanguageModel, pairs: Sequence[ConceptPair], *, split: str = "heldout"
) -> pd.DataFrame:
    """Measure how well a model knows facts on the prompts of a split.

    Args:
        model: An organism.
        pairs: The facts.
        split: Split of the templates.

    Returns:
        One row a fact: subject, target, relation, probability (mean over prompts), answers
        (fraction of the prompts where no token is likelier than the target's first), known (at
        least half of them, with a probability of at least 0.1, as in `helpers.facts.known_facts`).
    """
    prompts = [(i, p) for i, pair in enumerate(pairs) for p in pair.prompts(split)]
    probability, rank = answer_scores(model, [p for _, p in prompts])
    table = pd.DataFrame(
        {
            "fact": [i for i, _ in prompts],
            "probability": probability,
            "answers": (rank == 0).astype(float),
            "known": ((rank == 0) & (probability >= 0.1)).astype(float),
        }
    )
    means = table.groupby("fact").mean().assign(known=lambda t: t["known"] >= 0.5)
    names = {k: [getattr(p, k) for p in pairs] for k in ("subject", "target", "relation")}
    return pd.DataFrame({**names, **means.reset_index(drop=True)})


def facts_per_neuron(model: LanguageModel, fact_set: FactSet) -> float:
    """Divide the number of facts that the model was trained on by its number of MLP neurons."""
    arch = architecture_of(model)
    return len(fact_set.pairs) / (arch.n_layers * arch.d_mlp)


def concepts_per_neuron(activations: ConceptActivations) -> np.ndarray:
    """Count the concepts of each neuron that is active on any; see `concepts_per_unit`."""
    means = activations.means().flatten(1).clamp_min(0)
    is_active = means.max(0).values > MIN_ACTIVATION * means.max()
    return concepts_per_unit(means[:, is_active]).numpy()


def deletion_curve(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    sizes: Sequence[int],
    n_neighbours: int = 12,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how much of a fact and of others remains as more neurons are deleted.

    The neurons most specific to the subject are deleted.

    Args:
        model: An organism.
        pairs: The facts, each of which is deleted by itself.
        sizes: Numbers of deleted neurons; those of the whole model or more are skipped.
        n_neighbours: Number of neighbours on which the others are measured.
        seed: Seed of the deletion and of the evaluation.

    Returns:
        One row per fact, number and group of facts: fact, n_neurons, metric, remaining
        (P after / before, at most 1, over held-out prompts).
    """
    total = architecture_of(model).n_layers * architecture_of(model).d_mlp
    rows = []
    for pair in pairs:
        for n in sizes:
            if n >= total:
                continue
            with unlearn(model, pair, "neurons", n=n, seed=seed).applied(model):
                card = evaluate(
                    model,
                    pair,
                    n_neighbours=n_neighbours,
                    seed=seed,
                    parts=("efficacy", "retention"),
                )
            for group, title in GROUPS.items():
                if group in card:
                    remaining = card[group].value / card.before.get(group, 1.0)
                    rows.append((str(pair), n, title, min(1.0, remaining)))
    return pd.DataFrame(rows, columns=["fact", "n_neurons", "metric", "remaining"])


def best_deletions(curve: pd.DataFrame) -> pd.DataFrame:
    """Select the best number of neurons for each fact of a `deletion_curve`.

    It is best by the harmonic mean of forgetting (the fraction of the fact that is gone) and
    retention (the fraction of other facts that remains).

    Returns:
        One row a fact: fact, n_neurons, forgetting, retention, score.
    """
    wide = curve.pivot_table(index=["fact", "n_neurons"], columns="metric", values="remaining")
    forgetting = 1 - wide[GROUPS["paraphrases"]]
    retention = wide.drop(columns=GROUPS["paraphrases"]).mean(axis=1)
    table = pd.DataFrame({"forgetting": forgetting, "retention": retention}).reset_index()
    table = table.assign(score=harmonic_mean(table["forgetting"], table["retention"]))
    return table.loc[table.groupby("fact")["score"].idxmax()].reset_index(drop=True)


def training_tokens(recipe: Recipe, n: int, *, width: int = 32) -> Int[Tensor, "n width"]:
    """Tokenize the first sentences of an organism's text, padded or cut to one width.

    Args:
        recipe: Recipe of the organism.
        n: Number of sentences.
        width: Tokens of each.
    """
    fact_set = recipe.fact_set()
    n_repeats = max(1, n // len(fact_set.pairs))
    text = sentences(fact_set, n_repeats=n_repeats, n_passages=recipe.n_passages, seed=recipe.seed)[
        :n
    ]
    tokens = TokenizedText.of(text, fact_set, recipe.n_vocab)
    out = torch.full((len(text), width), tokens.pad)
    for row, ids in enumerate(tokens.ids):
        out[row, : min(len(ids), width)] = torch.tensor(list(ids[:width]))
    return out
