"""Selective pruning: delete the neurons that a text activates more than what must stay does.

Pochinkov & Schoots 2024, "Dissecting Language Models: Machine Unlearning via Selective Pruning".
Its control deletes as many neurons of the same layers, drawn at random.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.io.cache import cached_table
from helpers.io.choices import check_number
from helpers.io.code_version import code_hash
from helpers.methods.deleted_neurons import deletion, random_like
from helpers.methods.fitting.retain_budget import Losses, RetainBudget, TextHparams
from helpers.methods.fitting.token_means import token_means
from helpers.methods.registry import method
from helpers.methods.snapshots import preserved_parameters
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of, model_hash, torch_module
from helpers.requests import TextRequest
from helpers.training.examples import Example

EPSILON = 1e-5  # the paper's, so that a neuron that is silent on retained text has a finite score
N_CANDIDATES = 16  # numbers of neurons that are tried in the last round
Neuron = tuple[int, int]
"""(layer, neuron)."""


@dataclass(frozen=True)
class SelectivePruningHparams(TextHparams):
    """Hyperparameters of `selective_pruning`, and of its control `random_pruning`.

    Attributes:
        round_share: Share of all neurons that a round deletes; the paper prunes up to .03.
        n_rounds: Largest number of rounds.
    """

    round_share: float = 0.01
    n_rounds: int = 3


@method("selective_pruning", family="surgery", takes=("text",))
def selective_pruning(
    model: LanguageModel, request: TextRequest, hparams: SelectivePruningHparams, *, seed: int = 0
) -> WeightEdit:
    """Delete neurons by mean |a| on forget text / (mean |a| on retained text + 1e-5).

    Each round deletes the neurons with the largest scores and scores the others anew. The round
    that would pass the budget is cut to the largest number of neurons that it allows.

    Args:
        model: Any model of a known family.
        request: What to forget.
        hparams: Its hyperparameters.
        seed: Unused: nothing is random.

    Raises:
        UserError: A number is out of range, or the first neurons pass the budget already.
    """
    table = choose_neurons(model, request, hparams)
    chosen = _pairs(table)
    return _deletion_with_notes(model, chosen, table.attrs["notes"])


@method("random_pruning", family="control", takes=("text",))
def random_pruning(
    model: LanguageModel, request: TextRequest, hparams: SelectivePruningHparams, *, seed: int = 0
) -> WeightEdit:
    """Delete as many neurons of the same layers at random: the control of `selective_pruning`."""
    chosen = _pairs(choose_neurons(model, request, hparams))
    return _deletion_with_notes(model, random_like(model, chosen, seed=seed), {})


def choose_neurons(
    model: LanguageModel, request: TextRequest, hparams: SelectivePruningHparams
) -> pd.DataFrame:
    """Choose the neurons that `selective_pruning` deletes.

    Returns:
        One row a neuron, the first deleted first: layer, neuron, score, round. The losses are in
        `attrs["notes"]`. Kept in the cache by the model's hash, the text and the hyperparameters.

    Raises:
        UserError: A number is out of range, or the first neurons pass the budget already.
    """
    check_number("round_share", hparams.round_share, 1e-6, 1)
    check_number("n_rounds", hparams.n_rounds, 1, 1000)
    key = {
        "model": model_hash(model),
        "request": request.fingerprint(),
        "hparams": asdict(hparams),
        "code": code_hash(__file__),
    }
    return cached_table("selective-pruning", key, lambda: _choose(model, request, hparams))


def _choose(
    model: LanguageModel, request: TextRequest, hparams: SelectivePruningHparams
) -> pd.DataFrame:
    """Compute the table of `choose_neurons`."""
    arch, budget = architecture_of(model), RetainBudget(model, request, hparams)
    n_round = max(1, round(hparams.round_share * arch.n_layers * arch.d_mlp))
    rounds: list[pd.DataFrame] = []
    losses: Losses | None = None
    deleted: list[Neuron] = []
    for number in range(hparams.n_rounds):
        with without_neurons(model, deleted):
            ranked = rank_by_ratio(model, budget.forget, budget.retain, excluded=deleted)
        best = ranked.head(n_round).assign(round=number)
        measure = partial(_losses_without, model, budget, list(deleted), best)
        whole_round = measure(len(best))
        fits = budget.allows(whole_round)
        if not fits:
            counts = np.unique(np.geomspace(1, len(best), N_CANDIDATES).round().astype(int))
            strongest = budget.strongest(counts[:-1].tolist(), measure)
            if strongest is None:
                break
            n, whole_round = strongest
            best = best.head(int(n))
        rounds.append(best)
        losses = whole_round
        deleted += _pairs(best)
        if not fits or len(best) == len(ranked):
            break
    if losses is None:
        raise budget.nothing_allowed("selective_pruning")
    table = pd.concat(rounds, ignore_index=True)
    table.attrs["notes"] = budget.notes(losses)
    return table


def _losses_without(
    model: LanguageModel, budget: RetainBudget, deleted: list[Neuron], best: pd.DataFrame, n: float
) -> Losses:
    """Measure the model without the neurons deleted so far and the first `n` of `best`."""
    with without_neurons(model, deleted + _pairs(best.head(int(n)))):
        return budget.losses()


def rank_by_ratio(
    model: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    excluded: Collection[Neuron] = (),
) -> pd.DataFrame:
    """Rank neurons by their mean |activation| on one text relative to another, highest first.

    Args:
        model: Any model of a known family.
        forget: Text to forget.
        retain: Text that must stay.
        excluded: Neurons that are left out.

    Returns:
        One row a neuron: layer, neuron, score.
    """
    on_forget, on_retain = (_mean_absolute(model, examples) for examples in (forget, retain))
    score = (on_forget / (on_retain + EPSILON)).numpy()
    n_layers, d_mlp = score.shape
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(n_layers), d_mlp),
            "neuron": np.tile(np.arange(d_mlp), n_layers),
            "score": score.flatten(),
        }
    )
    left_out = [layer * d_mlp + neuron for layer, neuron in excluded]
    ranked = table.drop(index=left_out).sort_values("score", ascending=False, kind="stable")
    return ranked.reset_index(drop=True)


def _mean_absolute(
    model: LanguageModel, examples: Sequence[Example]
) -> Float[Tensor, "layers d_mlp"]:
    """Average |a| of every neuron over the tokens of examples."""
    means = token_means(model, examples, "neurons", lambda rows, layer: rows.abs())
    return torch.stack([means[layer] for layer in sorted(means)])


@contextlib.contextmanager
def without_neurons(model: LanguageModel, neurons: Sequence[Neuron]) -> Iterator[None]:
    """Zero the value columns of neurons for the length of a `with` block."""
    mlps = {layer: architecture_of(model).layers[layer].mlp for layer, _ in neurons}
    with preserved_parameters(torch_module(model), [mlp.out_name for mlp in mlps.values()]):
        with torch.no_grad():
            for layer, mlp in mlps.items():
                mlp.W_out()[:, [i for at, i in neurons if at == layer]] = 0
        yield


def _pairs(table: pd.DataFrame) -> list[Neuron]:
    """Return (layer, neuron) of each row."""
    return list(zip(table["layer"].tolist(), table["neuron"].tolist(), strict=True))


def _deletion_with_notes(
    model: LanguageModel, chosen: Sequence[Neuron], notes: dict[str, Any]
) -> WeightEdit:
    """Return the edit that deletes neurons, with their number by layer among its notes."""
    edit, arch = deletion(model, chosen), architecture_of(model)
    by_layer = Counter(layer for layer, _ in sorted(chosen))
    edit.notes |= notes | {
        "n_neurons": len(chosen),
        "share": len(chosen) / (arch.n_layers * arch.d_mlp),
        "by_layer": {str(layer): n for layer, n in by_layer.items()},
    }
    return edit
