"""Delete the neurons that are active on the subject: the naive baseline, and its random control.

The seed of this project, taken at its word: if a row of W_in detects the subject, delete the row
and the column that it drives. What else the neuron stood for goes with it.
"""

from collections.abc import Sequence
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
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, model_hash
from helpers.stats.auroc import auroc_by_unit


@dataclass(frozen=True)
class NeuronsHparams(Hyperparameters):
    """Hyperparameters of `neurons`.

    Attributes:
        n: How many neurons, over all layers.
        n_subjects: How many other subjects define what is specific.
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


@dataclass(frozen=True)
class RandomNeuronsHparams(Hyperparameters):
    """Hyperparameters of `random_neurons`."""

    n: int = 64
    n_subjects: int = 60


@method("random_neurons", family="control")
def random_neurons(
    model: LanguageModel, pair: ConceptPair, hparams: RandomNeuronsHparams, *, seed: int = 0
) -> WeightEdit:
    """Delete as many neurons of the same layers, drawn at random: the control of `neurons`."""
    ranked = rank_neurons(model, pair, n_subjects=hparams.n_subjects, seed=seed)
    return deletion(model, random_like(model, _top(ranked, hparams.n), seed=seed))


def rank_neurons(
    model: LanguageModel, pair: ConceptPair, *, n_subjects: int = 60, seed: int = 0
) -> pd.DataFrame:
    """All neurons of the model, the most specific to the subject first.

    The score is how much of what the neuron writes at the subject's last token is the subject's
    own, |mean activation on the subject − mean on others| · ‖value column‖, times how well it tells
    them apart, |2 · AUROC − 1|.

    Args:
        model: Any model of a known family.
        pair: The subject; its `train` completions are used, less those that begin with it (the
            first token of a text is a state of its own).
        n_subjects: Other subjects, drawn by `seed`, asked in the same ways.
        seed: Draws them.

    Returns:
        One row a neuron: layer, neuron, score, auroc, difference (of means), activation (mean on
        the subject). Kept in the cache by the model's hash and the prompts.
    """
    others = pair.others(n_subjects, seed=seed)
    own, theirs = subject_prompts(pair), [p for o in others for p in subject_prompts(o)]
    key = {"model": model_hash(model), "own": own, "others": theirs, "code": code_hash(__file__)}
    return cached_table("neuron-ranks", key, lambda: _ranked(model, own, theirs))


def _ranked(model: LanguageModel, own: list[Prompt], theirs: list[Prompt]) -> pd.DataFrame:
    inside, outside = (
        stack_layers(
            cache_activations(model, group, sites=["neurons"], positions="subject"), "neurons"
        )
        for group in (own, theirs)
    )  # (n, layers, d_mlp)
    difference = inside.mean(0) - outside.mean(0)  # (layers, d_mlp)
    auroc = auroc_by_unit(inside, outside)
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
            "activation": inside.mean(0).flatten().numpy(),
        }
    )
    return table.sort_values("score", ascending=False, ignore_index=True)


def random_like(
    model: LanguageModel, chosen: Sequence[tuple[int, int]], *, seed: int = 0
) -> list[tuple[int, int]]:
    """As many neurons of the same layers, drawn at random among the others."""
    rng, d_mlp = np.random.default_rng(seed), architecture_of(model).d_mlp
    drawn = []
    for layer in sorted({layer for layer, _ in chosen}):
        taken = {i for at, i in chosen if at == layer}
        rest = [i for i in range(d_mlp) if i not in taken]
        drawn += [(layer, int(i)) for i in rng.permutation(rest)[: len(taken)]]
    return drawn


def deletion(model: LanguageModel, chosen: Sequence[tuple[int, int]]) -> WeightEdit:
    """The delta that zeroes the rows and columns of (layer, neuron) pairs.

    Its rank in each matrix is the number of neurons deleted there.

    Raises:
        UserError: There is no such layer or neuron.
    """
    arch = architecture_of(model)
    chosen = [(arch.check_layer(layer), arch.check_neuron(i)) for layer, i in chosen]
    changes = {}
    for layer in sorted({layer for layer, _ in chosen}):
        mlp = arch.layers[layer].mlp
        index = sorted({i for at, i in chosen if at == layer})
        pick = torch.eye(arch.d_mlp)[index]  # (n, d_mlp)
        for name, keys in ((mlp.in_name, mlp.W_in()), (mlp.gate_name, mlp.W_gate())):
            if name:  # rows: pickᵀ (n of d_mlp) times the rows themselves
                changes[name] = low_rank_change(mlp, pick.T, -keys[index])
        changes[mlp.out_name] = low_rank_change(mlp, -mlp.W_out()[:, index], pick)
    return WeightEdit.of(model._module, changes)


def _top(ranked: pd.DataFrame, n: int) -> list[tuple[int, int]]:
    if not 1 <= n <= len(ranked):
        raise UserError(f"n is {n}: delete between 1 and {len(ranked)} neurons.")
    return [(int(r.layer), int(r.neuron)) for r in ranked.head(n).itertuples()]
