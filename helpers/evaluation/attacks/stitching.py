"""Stitch the original's upper layers on top of the edited model's lower layers.

A fact is computed at the subject's tokens and handed over to the last token in the middle layers
(chapter 02). The original's upper layers decode whatever the edited model has computed up to there.
If the answer comes back, the lower layers still represent the fact and only its output was
suppressed. This is model stitching (Bansal et al. 2021, "Revisiting Model Stitching to Compare
Neural Representations") with the identity in between, or activation patching of the whole residual
stream.
"""

from collections.abc import Sequence

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import (
    AttackKind,
    AttackNotApplicableError,
    attack,
    score_table,
)
from helpers.facts import ConceptPair, known_facts
from helpers.facts.known import are_known
from helpers.facts.relations import RELATIONS
from helpers.forward.layer_cache import LayerCache, use_layer_cache
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.models import architecture_of, torch_module
from helpers.models.hooks import active_interventions
from helpers.tracing import clean_corrupted_pairs, patching_over_facts

N_FACTS = 6  # known facts over which the hand-over layer is averaged


@attack("stitching", budget="layer", kind=AttackKind.ACTIVATIONS, shows_suppression=True)
def stitching(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Score held-out prompts with the original's layers from the relation's hand-over on.

    The budget is the first of the original's layers (`handover_layer`).
    """
    if active_interventions(torch_module(model)):
        raise AttackNotApplicableError(
            "What is changed by an intervention has no layers of its own."
        )
    if pair.relation not in RELATIONS and not pair.others:
        raise AttackNotApplicableError(
            "The layer to stitch at is that of other subjects of the relation, and there are none: "
            "name some that the model knows under 'others:'."
        )
    with base_model(model):
        layer = handover_layer(model, pair.factbook_relation, others=pair.others, seed=seed)
    if layer == 0:
        raise AttackNotApplicableError("The first layer hands the answer over: none lies below it.")
    prompts = pair.prompts("heldout")
    with use_layer_cache(model, LayerCache(model, layer, ignore_weight_changes=True)):
        answer_probability(model, prompts)
        with base_model(model):
            return score_table({layer: answer_probability(model, prompts)})


def handover_layer(
    model: LanguageModel, relation: str, *, others: Sequence[ConceptPair] = (), seed: int = 0
) -> int:
    """Find the first layer after which the last token's residual stream carries the answer.

    Patched into another subject's forward pass it moves at least half of the answer, on average
    over `N_FACTS` known facts. The patching effects are cached.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        others: Facts of other subjects in the same templates, instead of the relation's.
        seed: Draws the other subjects.

    Raises:
        AttackNotApplicableError: The model knows too little of the relation.
    """
    if others:
        is_known = are_known(model, others)
        facts = [other for other, x in zip(others, is_known, strict=True) if x]
    else:
        known = known_facts(model, relation).query("known")
        facts = [ConceptPair(r.subject, r.target, relation) for r in known.itertuples()]
    prompts = [fact.prompts("train")[0] for fact in facts]
    if not prompts:
        raise AttackNotApplicableError(f"The model knows no fact of the relation '{relation}'.")
    try:
        sample = clean_corrupted_pairs(model, prompts, prompts, seed=seed)[:N_FACTS]
    except UserError as error:
        raise AttackNotApplicableError(str(error)) from error
    table = patching_over_facts(model, sample, sites=["residual"], positions=["last"])
    mean = table.groupby("layer")["patching_effect"].mean()
    above = mean.index[mean >= 0.5]
    return int(above[0]) if len(above) else architecture_of(model).n_layers - 1
