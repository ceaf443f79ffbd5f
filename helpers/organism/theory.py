"""Measures of the theory: how many concepts share a neuron, and what deleting neurons costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.scorecard import evaluate
from helpers.evaluation.tradeoff import balance_of
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_scores
from helpers.methods import unlearn
from helpers.models import architecture_of
from helpers.organism.concept_units import Sightings, concepts_per_unit
from helpers.organism.countries import FactSet
from helpers.organism.recipe import Recipe
from helpers.organism.text import sentences
from helpers.organism.tokens import Tokens

ACTIVE = 1e-3  # of the largest mean activation: a neuron that stays below is not counted
GROUPS = {
    "paraphrases": "the fact",
    "neighbours": "neighbours",
    "same_subject": "subject's other facts",
}


def knowledge(
    model: LanguageModel, pairs: Sequence[ConceptPair], *, split: str = "heldout"
) -> pd.DataFrame:
    """How well facts are known in wordings of a split.

    Returns:
        One row a fact: subject, target, relation, probability (mean over wordings), answers (share
        of the wordings where no token is likelier than the target's first), known (at least half
        of them, with a probability of at least 0.1, as in `helpers.facts.known_facts`).
    """
    asked = [(i, p) for i, pair in enumerate(pairs) for p in pair.prompts(split)]
    probability, rank = answer_scores(model, [p for _, p in asked])
    table = pd.DataFrame(
        {
            "fact": [i for i, _ in asked],
            "probability": probability,
            "answers": (rank == 0).astype(float),
            "known": ((rank == 0) & (probability >= 0.1)).astype(float),
        }
    )
    found = table.groupby("fact").mean().assign(known=lambda t: t["known"] >= 0.5)
    names = {k: [getattr(p, k) for p in pairs] for k in ("subject", "target", "relation")}
    return pd.DataFrame({**names, **found.reset_index(drop=True)})


def facts_per_neuron(model: LanguageModel, world: FactSet) -> float:
    """Facts that the model was taught for each neuron of its MLPs."""
    arch = architecture_of(model)
    return len(world.pairs) / (arch.n_layers * arch.d_mlp)


def concepts_per_neuron(seen: Sightings) -> np.ndarray:
    """`concepts_per_unit` of the neurons that are active on any concept."""
    means = seen.means().flatten(1).clamp_min(0)
    alive = means.max(0).values > ACTIVE * means.max()
    return concepts_per_unit(means[:, alive]).numpy()


def deletion_curve(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    sizes: Sequence[int],
    n_neighbours: int = 12,
    seed: int = 0,
) -> pd.DataFrame:
    """What is left when the `n` neurons most specific to the subject are deleted.

    Returns:
        One row a fact, number and group of facts: fact, n_neurons, metric, left (P after / before,
        at most 1, over held-out wordings).
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
                    left = card[group].value / card.before.get(group, 1.0)
                    rows.append((str(pair), n, title, min(1.0, left)))
    return pd.DataFrame(rows, columns=["fact", "n_neurons", "metric", "left"])


def balances(curve: pd.DataFrame) -> pd.DataFrame:
    """The best number of neurons for each fact of a `deletion_curve`.

    The balance is the harmonic mean of the share that is forgotten and the share that is kept of
    other facts.

    Returns:
        One row a fact: fact, n_neurons, forgotten, kept, balance.
    """
    wide = curve.pivot_table(index=["fact", "n_neurons"], columns="metric", values="left")
    forgotten = 1 - wide[GROUPS["paraphrases"]]
    kept = wide.drop(columns=GROUPS["paraphrases"]).mean(axis=1)
    table = pd.DataFrame({"forgotten": forgotten, "kept": kept}).reset_index()
    table = table.assign(balance=balance_of(table["forgotten"], table["kept"]))
    return table.loc[table.groupby("fact")["balance"].idxmax()].reset_index(drop=True)


def training_tokens(recipe: Recipe, n: int, *, width: int = 32) -> Int[Tensor, "n width"]:
    """The first sentences of an organism's text, padded or cut to `width` tokens."""
    world = recipe.world()
    rounds = max(1, n // len(world.pairs))
    text = sentences(world, rounds=rounds, n_passages=recipe.n_passages, seed=recipe.seed)[:n]
    tokens = Tokens.of(text, world, recipe.n_vocab)
    out = torch.full((len(text), width), tokens.pad)
    for row, ids in enumerate(tokens.ids):
        out[row, : min(len(ids), width)] = torch.tensor(list(ids[:width]))
    return out
