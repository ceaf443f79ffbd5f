"""Forgetting against collateral damage: methods over the scale of their edits.

The scale multiplies an edit's change: 0 is the original model, 1 the edit as made, 2 twice the
change. All methods have this one knob, so that none is tuned more than another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import ControlsError
from helpers.evaluation.battery import State, battery
from helpers.evaluation.forgetting import reference_columns
from helpers.evaluation.meta.verdict_accuracy import PREDICTED_STATES, predicted_state
from helpers.evaluation.scaling import scale_edit
from helpers.evaluation.scorecard import evaluate
from helpers.evaluation.tradeoff_summary import add_summary_columns
from helpers.evaluation.verdict import verdict
from helpers.facts import ConceptPair, Prompt
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.io.hashing import folder_hash
from helpers.methods import METHODS, Edit, unlearn
from helpers.methods.equivalence import max_logit_diff
from helpers.models import model_hash

MINI_ATTACKS = (  # a second or a few each; together they see every way of hiding
    "paraphrases",
    "few_shot",
    "described",
    "stitching",
    "truncation",
    "mlp_windows",
    "relearning_neighbours",
)
# At this budget relearning brings back what a refusal hides, and nothing of a control fact.
MINI_OPTIONS = {"relearning_neighbours": {"steps": (5,), "rates": (2e-4,)}}
N_CONTROLS = 2  # control facts that these are compared with


@dataclass(frozen=True)
class EvalConfig:
    """Size of the evaluation of every edit.

    Attributes:
        split: The split whose templates are used: `dev` or `heldout`.
        n_neighbours: Known neighbours.
        n_tokens: Tokens of each text; 0 leaves out text, generation and attacks.
        attacks: Names of the attacks.
    """

    split: str = "dev"
    n_neighbours: int = 8
    n_tokens: int = 0
    attacks: Sequence[str] = MINI_ATTACKS


def tradeoff(
    model: LanguageModel,
    pairs: Iterable[ConceptPair],
    methods: Mapping[str, Mapping[str, Any]],
    *,
    scales: Mapping[str, Sequence[float]],
    config: EvalConfig,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Score every method on every pair and seed, at each scale of its edit.

    A method that refuses a pair (nothing to compare with, nothing to forget) gets a row with the
    reason, and no scores. Each method, pair and seed is cached by all that it depends on, so a
    stopped run resumes where it was.

    Args:
        model: The original model.
        pairs: Facts to forget, one after another.
        methods: Method → hyperparameters.
        scales: Method → scales of its edit.
        config: Size of the evaluation of every edit.
        seeds: Seeds of everything random.

    Returns:
        One row per pair, method, seed and scale: subject, target, method, family, seed, scale,
        refused, seconds (of the method), removes (the weights change), appends (neurons), norm,
        delta_rank (largest), folding_gap (largest difference of a logit between weights and
        intervention; NaN where more than the MLPs changes, or no weight), each metric of the
        scorecard by its name, `paraphrases_before`, and the columns of `add_summary_columns`. With
        text also `stitching` (mean P(target) of that attack; NaN where it is not applicable, or
        not among the attacks), and `state_…`: 1 for the one of `PREDICTED_STATES` that the attacks
        predict, and 0 for the others.
    """
    base = {"model": model_hash(model), "config": vars(config), "code": code_hash(__file__)}
    tables = []
    for pair in pairs:
        for name, hyperparameters in methods.items():
            for seed in seeds:
                key = {
                    **base,
                    "pair": [str(pair), pair.relation, *pair.fingerprint()],
                    "method": name,
                    "hyperparameters": {k: v for k, v in hyperparameters.items() if k != "saes"},
                    "saes": [folder_hash(f) for f in hyperparameters.get("saes", ())],
                    "scales": list(scales[name]),
                    "seed": seed,
                }
                run = (pair, name, hyperparameters, seed, scales[name], config)
                tables.append(cached_table("tradeoff", key, partial(_rows, model, *run)))
    return add_summary_columns(pd.concat(tables, ignore_index=True))


def _rows(
    model: LanguageModel,
    pair: ConceptPair,
    name: str,
    hyperparameters: Mapping[str, Any],
    seed: int,
    scales: Sequence[float],
    config: EvalConfig,
) -> pd.DataFrame:
    """Make one edit and score it at each scale."""
    about = {
        "subject": pair.subject,
        "target": pair.target,
        "method": name,
        "family": METHODS[name].family,
        "seed": seed,
    }
    try:
        edit = unlearn(model, pair, name, seed=seed, **hyperparameters)
    except UserError as error:
        return pd.DataFrame([{**about, "scale": 1.0, "refused": str(error)}])
    about |= {
        "refused": "",
        "seconds": edit.seconds,
        "removes": edit.changes_weights,
        "appends": edit.changes_weights and edit.delta.appends_neurons,
        **_weight_columns(model, edit, pair.prompts(config.split)[:1]),
        **reference_columns(model, pair, split=config.split, seed=seed),
    }
    rows = []
    # An intervention has no change of weights to scale.
    for scale in scales if edit.changes_weights else (1.0,):
        scaled = scale_edit(model, edit, scale) if edit.changes_weights else edit
        with scaled.applied(model):
            rows.append({**about, "scale": scale, **_scores(model, pair, config, seed)})
    return pd.DataFrame(rows)


def _scores(
    model: LanguageModel, pair: ConceptPair, config: EvalConfig, seed: int
) -> dict[str, float]:
    """Evaluate the model as it is."""
    parts = ("efficacy", "retention") + (("greedy", "model") if config.n_tokens else ())
    card = evaluate(
        model,
        pair,
        split=config.split,
        n_neighbours=config.n_neighbours,
        n_tokens=config.n_tokens or 512,
        seed=seed,
        parts=parts,
    )
    scores = {"paraphrases_before": card.before["paraphrases"]}
    scores |= {name: metric.value for name, metric in card.items()}
    return scores | (_attack_columns(model, pair, config, seed) if config.n_tokens else {})


def _attack_columns(
    model: LanguageModel, pair: ConceptPair, config: EvalConfig, seed: int
) -> dict[str, float]:
    """Attack the model; no columns if there is no control fact to compare with."""
    try:
        evidence = battery(
            model,
            pair,
            attacks=config.attacks,
            options=MINI_OPTIONS,
            n_controls=N_CONTROLS,
            seed=seed,
        )
    except ControlsError:
        return {}
    rows = evidence.table
    stitched = rows[(rows["attack"] == "stitching") & (rows["state"] == State.EDITED)]
    predicted = predicted_state(verdict(evidence, required=config.attacks))
    return {
        "stitching": stitched["score"].mean(),
        **{f"state_{state}": float(state == predicted) for state in PREDICTED_STATES},
    }


def _weight_columns(
    model: LanguageModel, edit: Edit, prompts: Sequence[Prompt]
) -> dict[str, float]:
    """Measure the change of the weights; NaN for an intervention."""
    if not edit.changes_weights:
        return dict.fromkeys(("norm", "delta_rank", "folding_gap"), np.nan)
    try:
        gap = max_logit_diff(model, edit, prompts)
    except UserError:  # more than the MLPs is changed
        gap = np.nan
    rank = max(change.rank for change in edit.delta.changes.values())
    return {"norm": edit.delta.norm(), "delta_rank": float(rank), "folding_gap": gap}
