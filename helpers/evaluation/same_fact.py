"""One fact under several edits: what is left of it by name, by other names, and under attack."""

from collections.abc import Mapping

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import ATTACKS, AttackNotApplicableError
from helpers.evaluation.method_choice import editing_methods
from helpers.facts import ConceptPair
from helpers.methods import Edit, unlearn

NAMED = "asked by name"
CONDITIONS = {  # what is done → the attack that does it
    NAMED: "paraphrases",
    "after other answers": "few_shot",
    "described, not named": "described",
    "cut to the stated width": "truncation",
    "MLPs of some layers left out": "mlp_windows",
    "rounded to 4 bits": "quantisation_int4",
}
ORIGINAL = "original"


def make_edits(
    model: LanguageModel, pair: ConceptPair, methods: str, *, seed: int = 0
) -> tuple[dict[str, Edit], list[str]]:
    """Make the edit of one fact by each of several methods.

    Args:
        model: The original model.
        pair: The fact.
        methods: Names separated by commas.
        seed: Seed of everything random.

    Returns:
        Name → edit, and a sentence for each method that refuses the fact.
    """
    edits, refused = {}, []
    for name in editing_methods(methods):
        try:
            edits[name] = unlearn(model, pair, name, seed=seed)
        except UserError as refusal:
            refused.append(f"{name} ({refusal})")
    return edits, refused


def same_fact(
    model: LanguageModel, pair: ConceptPair, edits: Mapping[str, Edit], *, seed: int = 0
) -> pd.DataFrame:
    """Measure P(target) of one fact under each edit, as it is and under a few attacks.

    Args:
        model: The original model.
        pair: The fact.
        edits: Name → edit.
        seed: Seed of the attacks.

    Returns:
        One row an edit (`ORIGINAL` first) and condition: edit, condition, p (mean over prompts at
        the budget where it is largest), worst (the largest of one prompt), n (prompts). A condition
        that has no hold on the fact is left out.
    """
    tables = [_measured(model, pair, seed).assign(edit=ORIGINAL)]
    for name, edit in edits.items():
        with edit.applied(model):
            tables.append(_measured(model, pair, seed).assign(edit=name))
    return pd.concat(tables, ignore_index=True)


def _measured(model: LanguageModel, pair: ConceptPair, seed: int) -> pd.DataFrame:
    """Run every condition's attack on the model as it is now."""
    rows = []
    for condition, name in CONDITIONS.items():
        try:
            scores = ATTACKS[name].function(model, pair, seed=seed)
        except AttackNotApplicableError:
            continue
        means = scores.groupby("budget")["score"].mean()
        largest = scores[scores["budget"] == means.idxmax()]["score"]
        rows.append(
            {
                "condition": condition,
                "p": float(largest.mean()),
                "worst": float(scores["score"].max()),
                "n": len(largest),
            }
        )
    return pd.DataFrame(rows)
