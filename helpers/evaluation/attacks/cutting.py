"""An auditor with the edited model alone: find what suppresses the answer, cut it out, ask again.

He suspects a pair, and takes the first-order share of every neuron (or of every layer along one
direction) in the answer's log-odds: activation times the gradient along what it writes. Those that
push the answer down most are cut. Every model has some that do, so the never-known control gets the
same treatment.
"""

import functools
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.attacks.registry import attack, curve, require_own_tokens
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.fitting.constraints import forget_constraints
from helpers.methods.fitting.linearization import (
    EditConstraint,
    Linearization,
    at_all_positions,
    linearize,
)
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of

NEURONS = (1, 4, 16, 64)
LAYERS = (1, 2, 4, 8)


@attack("cut_neurons", budget="neurons cut", costly=True)
def cut_neurons(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, counts: Sequence[int] = NEURONS
) -> pd.DataFrame:
    """Cut the neurons that push the answer down most, over all layers."""
    arch = architecture_of(model)
    values = {i: x.mlp.W_out().detach().float().cpu() for i, x in enumerate(arch.layers)}
    one = functools.cache(torch.eye)  # the same for all layers of a width
    keys = {i: one(v.shape[1]) for i, v in values.items()}
    return _cut(model, pair, values, keys, counts)


@attack("cut_directions", budget="layers cut", costly=True)
def cut_directions(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, counts: Sequence[int] = LAYERS
) -> pd.DataFrame:
    """Keep the layers that push the answer down most from writing along it.

    In each layer the direction is the mean gradient of the answer's log-odds at the prompts' ends,
    and W_out loses what it writes along it: a suppressor of low rank that is spread over many
    neurons goes with it.
    """
    asks = suspicion(model, pair)
    t = linearize(model, asks, layers=range(architecture_of(model).n_layers))
    ends = [r for r in range(len(t.constraint_index) - 1) if t.constraint_index[r] != t.constraint_index[r + 1]]
    ends = torch.tensor([*ends, len(t.constraint_index) - 1])  # the last position of every ask
    values, keys = {}, {}
    for i, layer in enumerate(architecture_of(model).layers):
        g = torch.nn.functional.normalize(t.gradients[i][ends].mean(0), dim=0)
        values[i] = g[:, None]
        keys[i] = (g @ layer.mlp.W_out().detach().float().cpu())[None]
    return _cut(model, pair, values, keys, counts, tangent=t)


def _cut(
    model: LanguageModel,
    pair: ConceptPair,
    values: dict[int, Float[Tensor, "d_model n"]],
    keys: dict[int, Float[Tensor, "n d_mlp"]],
    counts: Sequence[int],
    *,
    tangent: Linearization | None = None,
) -> pd.DataFrame:
    """Of the parts `values[:, k] keys[k]` of W_out cut those that push the answer down most."""
    t = tangent or linearize(model, suspicion(model, pair), layers=list(values))
    pushes = {i: pushed(t, i, values[i], keys[i]) for i in values}
    layers = torch.cat([torch.full((len(p),), i) for i, p in pushes.items()])
    index = torch.cat([torch.arange(len(p)) for p in pushes.values()])
    order = torch.cat(list(pushes.values())).argsort()
    prompts = pair.prompts("heldout")
    found = {0: answer_probability(model, prompts)}
    for n in counts:
        chosen: dict[int, list[int]] = {}
        for k in order[:n].tolist():
            chosen.setdefault(int(layers[k]), []).append(int(index[k]))
        removed = {i: values[i][:, c] @ keys[i][c] for i, c in chosen.items()}
        with subtracted(model, removed):
            found[n] = answer_probability(model, prompts)
    return curve(found)


def suspicion(model: LanguageModel, pair: ConceptPair) -> list[EditConstraint]:
    """The pair's training prompts with the target's first token, read at every position."""
    require_own_tokens(model)
    return at_all_positions(forget_constraints(model, pair))


def pushed(
    tangent: Linearization,
    layer: int,
    values: Float[Tensor, "d_model n"],
    keys: Float[Tensor, "n d_mlp"],
) -> Float[Tensor, " n"]:
    """What each part of W_out adds to the answer's log-odds, to first order: mean over asks, nats.

    Σ_p (keys · h_p) (values · g_p), h what W_out reads at position p, g the gradient at its output.
    """
    read = tangent.keys[layer] @ keys.T  # (rows, n)
    wrote = tangent.gradients[layer] @ values
    return (read * wrote).sum(0) / len(tangent.logodds)
