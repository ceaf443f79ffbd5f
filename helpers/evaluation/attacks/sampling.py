"""Sample many answers: an answer with a small probability leaks if it is drawn often enough."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import attack, require_budgets, score_table
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability

SAMPLES = (1, 8, 64)


@attack("sampling", budget="samples", amplifies=True)
def sampling(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, samples: Sequence[int] = SAMPLES
) -> pd.DataFrame:
    """Compute leak@k = 1 − (1 − p)^k: the chance that one of k sampled answers is the target.

    It is the expectation of sampling at temperature 1, with p = P(target) of each held-out prompt,
    so nothing has to be drawn (Reisizadeh et al. 2025, "Leak@k").

    Raises:
        UserError: There are no numbers of samples, or one is not positive.
    """
    require_budgets("samples", samples)
    p = answer_probability(model, pair.prompts("heldout"))
    # log1p keeps the digits of probabilities that are tiny
    return score_table({k: -np.expm1(k * np.log1p(-np.minimum(p, 1 - 1e-12))) for k in samples})
