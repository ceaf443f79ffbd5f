"""Put the original's upper layers on top of the edited model's lower ones.

A fact is worked out at the subject's tokens and handed to the last token somewhere in the middle
(chapter 02). What the edited model has worked out up to there, the original's upper layers can say:
if the answer comes back, the fact was still known below and only kept from being said. (Model
stitching, Bansal et al. 2021, "Revisiting Model Stitching to Compare Neural Representations", with
the identity in between; activation patching of the whole residual stream.)
"""

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import AttackNotApplicableError, attack, curve
from helpers.facts import ConceptPair, known_facts
from helpers.forward.layer_cache import LayerCache, use_layer_cache
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.models import architecture_of
from helpers.models.hooks import active_interventions
from helpers.tracing import clean_corrupted_pairs, patching_over_facts

FACTS = 6  # known facts that say where the relation is handed over


@attack("stitched", budget="layer")
def stitched(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """P(target) with the original's layers from the relation's hand-over on, on held-out wordings.

    The budget is the first layer that is the original's (`handover_layer`).
    """
    if active_interventions(model._module):
        raise AttackNotApplicableError(
            "What is changed by an intervention has no layers of its own."
        )
    with base_model(model):
        layer = handover_layer(model, pair.factbook_relation, seed=seed)
    if layer == 0:
        raise AttackNotApplicableError("The first layer hands the answer over: none lies below it.")
    prompts = pair.prompts("heldout")
    with use_layer_cache(model, LayerCache(model, layer, ignore_weight_changes=True)):
        answer_probability(model, prompts)
        with base_model(model):
            return curve({layer: answer_probability(model, prompts)})


def handover_layer(model: LanguageModel, relation: str, *, seed: int = 0) -> int:
    """The first layer after which the last token's state carries the answer.

    That is, patched into another subject's run it moves at least half of the answer, on average
    over some facts that the model knows. Kept in the cache.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        seed: Draws the subjects that the facts are compared with.

    Raises:
        NothingToAttackError: The model knows too little of the relation.
    """
    known = known_facts(model, relation).query("known")
    facts = [ConceptPair(r.subject, r.target, relation) for r in known.itertuples()]
    prompts = [fact.prompts("train")[0] for fact in facts]
    if not prompts:
        raise AttackNotApplicableError(f"The model knows no fact of the relation '{relation}'.")
    try:
        sample = clean_corrupted_pairs(model, prompts, prompts, seed=seed)[:FACTS]
    except UserError as error:
        raise AttackNotApplicableError(str(error)) from error
    table = patching_over_facts(model, sample, sites=["residual"], positions=["last"])
    mean = table.groupby("layer")["patching_effect"].mean()
    above = mean.index[mean >= 0.5]
    return int(above[0]) if len(above) else architecture_of(model).n_layers - 1
