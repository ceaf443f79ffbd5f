"""Delete the neurons that are active on the subject: the naive baseline, and its random control.

It is the literal form of this project's first idea: if a row of W_in detects the subject, delete
the row and the column that it activates. The neuron's other functions are lost with it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import cache_activations, stack_layers
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.methods.deleted_neurons import deletion, random_like
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, model_hash
from helpers.stats.auroc import auroc_by_unit


@dataclass(frozen=True)
class NeuronsHparams(Hyperparameters):
    """Hyperparameters of `neurons`, and of its control `random_neurons`.

    Attributes:
        n: Number of deleted neurons, over all layers.
        n_subjects: Other subjects with which the subject is compared.
    """

    n: int = 64
    n_subjects: int = 60


@method("neurons", family="surgery")
def neurons(
    model: LanguageModel, pair: ConceptPair, hparams: NeuronsHparams, *, seed: int = 0
) -> WeightEdit:
    """Delete the `n` neurons most specific to the subject.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.
    """
    ranked = rank_neurons(model, pair, n_subjects=hparams.n_subjects, seed=seed)
    return deletion(model, _top(ranked, hparams.n))


@method("random_neurons", family="control")
def random_neurons(
    model: LanguageModel, pair: ConceptPair, hparams: NeuronsHparams, *, seed: int = 0
) -> WeightEdit:
    """Delete as many neurons of the same layers, drawn at random: the control of `neurons`."""
    ranked = rank_neurons(model, pair, n_subjects=hparams.n_subjects, seed=seed)
    return deletion(model, random_like(model, _top(ranked, hparams.n), seed=seed))


def rank_neurons(
    model: LanguageModel, pair: ConceptPair, *, n_subjects: int = 60, seed: int = 0
) -> pd.DataFrame:
    """Rank all neurons of the model, the most specific to the subject first.

    The score is a product. Its first factor is the norm of the neuron's output at the subject's
    last token that is the subject's own: |mean activation on the subject − mean on others| ·
    ‖value column‖. The second tells how well the neuron separates them: |2 · AUROC − 1|.

    Args:
        model: Any model of a known family.
        pair: The subject; its `train` completions are used, less those that begin with it (the
            first token of a text is an attention sink).
        n_subjects: Other subjects, in the same prompts.
        seed: Draws them.

    Returns:
        One row a neuron: layer, neuron, score, auroc, difference (of means), activation (mean on
        the subject). Kept in the cache by the model's hash and the prompts.
    """
    others = pair.comparison_pairs(n_subjects, seed=seed)
    positives = subject_prompts(pair)
    negatives = [p for other in others for p in subject_prompts(other)]
    key = {
        "model": model_hash(model),
        "positives": [str(p) for p in positives],
        "negatives": [str(p) for p in negatives],
        "code": code_hash(__file__),
    }
    return cached_table("neuron-ranks", key, lambda: _ranked(model, positives, negatives))


def _ranked(
    model: LanguageModel, positive_prompts: list[Prompt], negative_prompts: list[Prompt]
) -> pd.DataFrame:
    """Compute the table of `rank_neurons` for the subject's prompts and other subjects'."""
    positives, negatives = (
        stack_layers(
            cache_activations(model, group, sites=["neurons"], positions="subject"), "neurons"
        )
        for group in (positive_prompts, negative_prompts)
    )  # (n, layers, d_mlp)
    difference = positives.mean(0) - negatives.mean(0)  # (layers, d_mlp)
    auroc = auroc_by_unit(positives, negatives)
    arch = architecture_of(model)
    norms = torch.stack([layer.mlp.W_out().float().norm(dim=0).cpu() for layer in arch.layers])
    score = difference.abs() * norms * (2 * auroc - 1).abs()
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(arch.n_layers), arch.d_mlp),
            "neuron": np.tile(np.arange(arch.d_mlp), arch.n_layers),
            "score": score.flatten().numpy(),
            "auroc": auroc.flatten().numpy(),
            "difference": difference.flatten().numpy(),
            "activation": positives.mean(0).flatten().numpy(),
        }
    )
    return table.sort_values("score", ascending=False, ignore_index=True)


def _top(ranked: pd.DataFrame, n: int) -> list[tuple[int, int]]:
    """Return (layer, neuron) of the first `n` neurons of a ranking."""
    if not 1 <= n <= len(ranked):
        raise UserError(f"n is {n}: delete between 1 and {len(ranked)} neurons.")
    return [(int(r.layer), int(r.neuron)) for r in ranked.head(n).itertuples()]
