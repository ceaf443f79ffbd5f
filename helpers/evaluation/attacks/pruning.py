"""Prune the smallest weights: an edit made of many small changes may go before the fact does."""

from collections.abc import Sequence

import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.evaluation.attacks.quantisation import block_weights
from helpers.evaluation.attacks.registry import (
    AttackKind,
    attack,
    require_budgets,
    score_table,
)
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.snapshots import preserved_parameters
from helpers.models import torch_module

RATIOS = (0.1, 0.3)


@attack("pruning", budget="share pruned", expensive=True, kind=AttackKind.WEIGHTS)
def pruning(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, ratios: Sequence[float] = RATIOS
) -> pd.DataFrame:
    """Zero the given share of the smallest weights of every linear layer in the blocks.

    Magnitude pruning within each output row (Han et al. 2015, by the rows of Sun et al. 2024).

    Raises:
        UserError: There are no ratios, or one is not above 0 and at most 1.
    """
    require_budgets("ratios", ratios, most=1)
    module, names, prompts = torch_module(model), block_weights(model), pair.prompts("heldout")
    scores = {0.0: answer_probability(model, prompts)}
    for ratio in ratios:
        with preserved_parameters(module, names):
            with torch.no_grad():
                for name, is_transposed in names.items():
                    weight = module.get_parameter(name)
                    rows = weight.T if is_transposed else weight
                    n_pruned = int(ratio * rows.shape[1])
                    smallest = rows.abs().topk(n_pruned, dim=1, largest=False).indices
                    rows.scatter_(1, smallest, 0.0)  # a view: it writes into the weight
            scores[ratio] = answer_probability(model, prompts)
    return score_table(scores)
