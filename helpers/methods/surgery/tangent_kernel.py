"""The minimum-norm change of W_out that makes the answer unlikely, by kernel regression.

The answers' log-odds are linearized in the weights (`helpers.methods.fitting.linearization`). Each
step solves for the change that reaches their targets and disturbs other text least. The method
depends on the *isolation of the key*. Forget prompts are edited only at the subject's tokens, and
only in layers below the extraction layer, where the subject's key is still its own. "Other text"
means both ordinary passages and the same prompts about all other subjects.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.forward.layer_cache import cache_below, use_layer_cache
from helpers.forward.scoring import next_token_and_answer
from helpers.methods.fitting.constraints import (
    forget_constraints,
    preservation_constraints,
    retain_prompts,
    target_change,
)
from helpers.methods.fitting.edit_constraint import EditConstraint
from helpers.methods.fitting.hparams import PreservationHparams
from helpers.methods.fitting.kernel_ridge import WhitenedRows, min_norm_update
from helpers.methods.fitting.linearization import linearize
from helpers.methods.fitting.negatives import preservation_metric
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightEdit, dense_changes
from helpers.models import architecture_of, torch_module

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TangentKernelHparams(PreservationHparams):
    """Hyperparameters of `tangent_kernel`, with those of what an edit preserves.

    Attributes:
        layers: Edited layers; by default 6 to 16 of 30, at the same relative depth in other models.
            Earlier layers carry everything that is known of the subject, so its other facts would
            suffer with the one that is forgotten.
        target_prob: Probability that the training prompts' answers come down to.
        n_neighbours: Known neighbours whose answers are preserved.
        ridge: Ridge of the kernel regression, relative to the kernel's diagonal.
        n_tokens: Tokens of ordinary text in the preservation metric.
        step_sizes: Fraction of the residual that each step removes.
    """

    RENAMED: ClassVar = {
        "floor": "target_prob",
        "text": "corpus_weight",
        "protect": "neighbour_weight",
        "damping": "identity_weight",
        "steps": "step_sizes",
    }

    layers: Sequence[int] | None = None
    target_prob: float = 0.01
    n_neighbours: int = 40
    ridge: float = 0.01
    n_tokens: int = 60000
    step_sizes: tuple[float, ...] = (0.4, 0.5, 0.6, 1.0, 1.0)


@method("tangent_kernel", family="surgery", takes=("pair", "pairs"))
def tangent_kernel(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: TangentKernelHparams,
    *,
    seed: int = 0,
) -> WeightEdit:
    """Change W_out of early layers by the minimum-norm update that forgets the pairs.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget, by one update.
        hparams: Its hyperparameters.
        seed: Seed that draws text and neighbours.

    Raises:
        UserError: Two prompts cannot be told apart.
    """
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in hparams.layers or arch.relative_layers(range(6, 17))]
    constraints = _constraints(model, pairs, hparams, seed=seed)
    factors = preservation_metric(
        model, pairs, hparams, layers=layers, n_tokens=hparams.n_tokens, seed=seed
    )
    delta = {i: torch.zeros(arch.d_model, arch.d_mlp) for i in layers}
    initial_logodds, layer_cache = None, cache_below(model, layers)
    for step_size in hparams.step_sizes:

        def edit_output(
            layer: int, mlp_in: Tensor, hidden: Tensor, delta: dict[int, Tensor] = delta
        ) -> Tensor:
            return hidden @ delta[layer].to(hidden).T

        # Log-odds are not linear in a large change: each step linearizes anew at the edit so far.
        with use_layer_cache(model, layer_cache):
            linearization = linearize(model, constraints, layers=layers, edit_output=edit_output)
        logodds = linearization.logodds
        initial_logodds = logodds if initial_logodds is None else initial_logodds
        log.debug("log-odds %s", logodds)
        target = step_size * target_change(constraints, logodds, initial_logodds)
        rows = WhitenedRows.of(linearization, factors)
        update = min_norm_update(
            [rows], target, factors, ridge=hparams.ridge, constraints=constraints
        )
        delta = {i: delta[i] + update[i] for i in layers}
    return WeightEdit.of(torch_module(model), dense_changes(arch, delta))


def _constraints(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: TangentKernelHparams,
    *,
    seed: int,
) -> list[EditConstraint]:
    """Build the forget constraints, then the retain constraints."""
    constraints = [
        constraint
        for pair in pairs
        for constraint in forget_constraints(model, pair, target_prob=hparams.target_prob)
    ]
    retained = retain_prompts(
        model, pairs, n_neighbours=hparams.n_neighbours, top_k=hparams.top_k, seed=seed
    )
    for group in retained:
        predictions = next_token_and_answer(model, group.prompts)
        constraints += preservation_constraints(model, group, predictions, hparams)
    return constraints
