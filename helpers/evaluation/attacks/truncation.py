"""Cut every MLP back to the width that the original has: appended neurons are cut off."""

import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import AttackKind, attack, score_table
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of


@attack("truncation", budget="none", kind=AttackKind.WEIGHTS, shows_suppression=True)
def truncation(model: LanguageModel, pair: ConceptPair, *, seed: int = 0) -> pd.DataFrame:
    """Zero the columns of W_out beyond the width that the configuration states.

    Such a neuron can have come from an edit alone. A model without any is scored as it is.
    """
    with base_model(model):
        widths = [layer.mlp.W_out().shape[1] for layer in architecture_of(model).layers]
    removed = {}
    for i, layer in enumerate(architecture_of(model).layers):
        W_out = layer.mlp.W_out().detach()
        if W_out.shape[1] > widths[i]:
            kept = torch.arange(W_out.shape[1]) < widths[i]
            removed[i] = W_out * ~kept.to(W_out.device)
    with subtracted(model, removed):
        return score_table({0: answer_probability(model, pair.prompts("heldout"))})
