"""Read the answer off inside the model, before the layer that hides it."""

import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.register import NothingToAttackError, attack
from helpers.facts import ConceptPair
from helpers.tracing import logit_lens


@attack("lens", budget="layer")
def lens(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """P(first token of the target) in the logit lens after every layer, at the last token."""
    prompts = [p for p in pair.prompts("heldout") if p.format == "completion"]
    if not prompts:
        raise NothingToAttackError("The pair has no statements to read between the layers of.")
    table = logit_lens(model, prompts)
    return table.rename(columns={"layer": "budget", "probability": "score"})[
        ["budget", "prompt", "score"]
    ]
