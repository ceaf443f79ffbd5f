"""Ablate components that suppress the answer: the attacker has the edited weights alone.

He suspects a pair, and computes the direct effect of every neuron (or of every layer along one
direction) on the answer's log-odds: activation times the gradient along its output direction. He
ablates those that lower the answer most. Every model has some, so control facts get the same
treatment.
"""

import functools
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import (
    AttackKind,
    AttackNotApplicableError,
    attack,
    require_budgets,
    require_own_tokens,
    score_table,
)
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.fitting.adversarial_cuts import direct_effect
from helpers.methods.fitting.constraints import forget_constraints
from helpers.methods.fitting.contrast import contrast
from helpers.methods.fitting.edit_constraint import EditConstraint, at_all_positions
from helpers.methods.fitting.linearization import linearize
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of

NEURONS = (1, 4, 16, 64)
LAYERS = (1, 2, 4, 8)


@attack(
    "neuron_ablation",
    budget="neurons ablated",
    expensive=True,
    kind=AttackKind.WEIGHTS,
    shows_suppression=True,
)
def neuron_ablation(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, counts: Sequence[int] = NEURONS
) -> pd.DataFrame:
    """Ablate the neurons that lower the answer most, over all layers."""
    values, keys = _neurons(model)
    linearization = linearize(model, target_constraints(model, pair), layers=list(values))
    effects = {i: direct_effect(linearization, i, values[i], keys[i]) for i in values}
    return _ablate(model, pair, effects, values, keys, counts)


@attack(
    "subject_neuron_ablation",
    budget="neurons ablated",
    expensive=True,
    kind=AttackKind.WEIGHTS,
    shows_suppression=True,
)
def subject_neuron_ablation(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, counts: Sequence[int] = NEURONS
) -> pd.DataFrame:
    """Ablate the neurons that are most specific to the subject, over all layers.

    A neuron is as specific as its mean activation at the subject's last token differs from that at
    other subjects, times the norm of its value. The attacker needs no answer for it: a filter that
    recognises a name is such a neuron.
    """
    require_own_tokens(model)
    values, keys = _neurons(model)
    try:
        contrasts = contrast(model, pair, layers=list(values), site="neurons", seed=seed)
    except UserError as error:
        raise AttackNotApplicableError(str(error)) from error
    specificity = {i: c.difference().abs() * values[i].norm(dim=0) for i, c in contrasts.items()}
    return _ablate(model, pair, {i: -s for i, s in specificity.items()}, values, keys, counts)


@attack(
    "directional_ablation",
    budget="layers ablated",
    expensive=True,
    kind=AttackKind.WEIGHTS,
    shows_suppression=True,
)
def directional_ablation(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, counts: Sequence[int] = LAYERS
) -> pd.DataFrame:
    """Keep the layers that lower the answer most from writing along the answer's direction.

    In each layer the direction is the mean gradient of the answer's log-odds at the prompts' ends,
    and W_out loses its part along it. This removes a suppressor of low rank that is spread over
    many neurons.
    """
    arch = architecture_of(model)
    linearization = linearize(model, target_constraints(model, pair), layers=range(arch.n_layers))
    # The last row of each constraint is the prompt's last position.
    owner = linearization.constraint_index
    ends = [row for row in range(len(owner) - 1) if owner[row] != owner[row + 1]]
    ends = torch.tensor([*ends, len(owner) - 1])
    values, keys = {}, {}
    for i, layer in enumerate(arch.layers):
        direction = linearization.gradients[i][ends].mean(0)
        direction = torch.nn.functional.normalize(direction, dim=0)
        values[i] = direction[:, None]
        keys[i] = (direction @ layer.mlp.W_out().detach().float().cpu())[None]
    effects = {i: direct_effect(linearization, i, values[i], keys[i]) for i in values}
    return _ablate(model, pair, effects, values, keys, counts)


def _neurons(
    model: LanguageModel,
) -> tuple[dict[int, Float[Tensor, "d_model d_mlp"]], dict[int, Float[Tensor, "d_mlp d_mlp"]]]:
    """Return every layer's neurons as components of W_out, for `_ablate`: values and keys."""
    layers = architecture_of(model).layers
    values = {i: x.mlp.W_out().detach().float().cpu() for i, x in enumerate(layers)}
    identity = functools.cache(torch.eye)  # layers of the same width share it
    return values, {i: identity(v.shape[1]) for i, v in values.items()}


def _ablate(
    model: LanguageModel,
    pair: ConceptPair,
    effects: dict[int, Float[Tensor, " n"]],
    values: dict[int, Float[Tensor, "d_model n"]],
    keys: dict[int, Float[Tensor, "n d_mlp"]],
    counts: Sequence[int],
) -> pd.DataFrame:
    """Subtract the components `values[:, k] keys[k]` of W_out with the most negative effects.

    Raises:
        UserError: There are no counts, or one is not positive.
    """
    require_budgets("counts", counts)
    layers = torch.cat([torch.full((len(effect),), i) for i, effect in effects.items()])
    index = torch.cat([torch.arange(len(effect)) for effect in effects.values()])
    order = torch.cat(list(effects.values())).argsort()  # the most negative effect first
    prompts = pair.prompts("heldout")
    scores = {0: answer_probability(model, prompts)}
    for n in counts:
        components: dict[int, list[int]] = {}
        for k in order[:n].tolist():
            components.setdefault(int(layers[k]), []).append(int(index[k]))
        removed = {i: values[i][:, c] @ keys[i][c] for i, c in components.items()}
        with subtracted(model, removed):
            scores[n] = answer_probability(model, prompts)
    return score_table(scores)


def target_constraints(model: LanguageModel, pair: ConceptPair) -> list[EditConstraint]:
    """Build constraints on the target's first token, for the training prompts at all positions."""
    require_own_tokens(model)
    return at_all_positions(forget_constraints(model, pair))
