"""Read the answer inside the model, before the layer that hides it, by a linear probe."""

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import (
    AttackNotApplicableError,
    attack,
    require_own_tokens,
)
from helpers.evaluation.metrics.linear_probe import linear_probe
from helpers.facts import ConceptPair


@attack("probe", budget="layer", aggregate_budgets=True)
def probe(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Rank the target by a linear probe of the last token's activations (`linear_probe`).

    The probe is trained on other subjects' facts; 1 is first, 0.5 is chance.
    """
    require_own_tokens(model)
    try:
        table = linear_probe(model, pair, seed=seed)
    except UserError as error:
        raise AttackNotApplicableError(str(error)) from error
    return table.rename(columns={"layer": "budget"})[["budget", "prompt", "score"]]
