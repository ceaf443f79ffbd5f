"""The least change of W_out that makes the answer unlikely, by kernel regression.

The answers' log-odds are linearised in the weights (`helpers.methods.fitting.linearization`), and the change that
reaches the wanted ones while it disturbs other text least is solved for. What decides is the
*isolation of the key*: the forget prompts act only at the subject's tokens, only layers below the
hand-over are edited, where the subject's key is still its own, and "other text" counts both
ordinary passages and the same questions about all other subjects.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.forward.layer_cache import below, use_layer_cache
from helpers.methods.change import Change
from helpers.methods.fitting.constraints import (
    forget_constraints,
    retain_constraints,
    target_change,
)
from helpers.methods.fitting.linearization import linearize, min_norm_update
from helpers.methods.fitting.negatives import preservation_metric
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TangentKernelHparams(Hyperparameters):
    """Hyperparameters of `tangent_kernel`.

    Attributes:
        layers: Which layers are edited; by default 6 to 16 of 30, at the same relative depth in
            other models. Earlier ones carry all that is known of the subject, and its other facts
            suffer with the one that goes.
        floor: Probability that the training prompts' answers come down to.
        n_neighbours: Known neighbours whose answers are held.
        text: Weight of ordinary text's keys in what counts as disturbance.
        protect: Weight of the keys of the same questions about other subjects.
        damping: Weight of a change in any direction, relative to the mean variance of a key.
        ridge: Ridge of the kernel regression, relative to its diagonal.
        n_tokens: Tokens of ordinary text.
        steps: Share of the way to go at each linearisation.
    """

    layers: Sequence[int] | None = None
    floor: float = 0.01
    n_neighbours: int = 40
    text: float = 1.0
    protect: float = 10.0
    damping: float = 0.1
    ridge: float = 0.01
    n_tokens: int = 60000
    steps: tuple[float, ...] = (0.4, 0.5, 0.6, 1.0, 1.0)


@method("tangent_kernel", family="surgery", supports_batch=True)
def tangent_kernel(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: TangentKernelHparams,
    *,
    seed: int = 0,
) -> WeightEdit:
    """Change W_out of early layers by the least that forgets the pairs.

    Args:
        model: Any model of a known family.
        pairs: What to forget, solved for together.
        hparams: Its hyperparameters.
        seed: Draws text and neighbours.

    Raises:
        UserError: Two prompts cannot be told apart.
    """
    layers = hparams.layers
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in layers or arch.relative_layers(range(6, 17))]
    asks = [a for p in pairs for a in forget_constraints(model, p, floor=hparams.floor)]
    asks += retain_constraints(model, pairs, n_neighbours=hparams.n_neighbours, seed=seed)
    metric = preservation_metric(
        model,
        pairs,
        layers=layers,
        text=hparams.text,
        protect=hparams.protect,
        damping=hparams.damping,
        n_tokens=hparams.n_tokens,
        seed=seed,
    )
    change = {i: torch.zeros(arch.d_model, arch.d_mlp) for i in layers}
    before, lower = None, below(model, layers)
    for step in hparams.steps:

        def extra(i, into, hidden, change=change):
            return hidden @ change[i].to(hidden).T

        with use_layer_cache(model, lower):
            t = linearize(model, asks, layers=layers, extra=extra)
        before = t.logodds if before is None else before
        log.debug("log-odds %s", t.logodds)
        wanted = step * target_change(asks, t.logodds, before)
        more = min_norm_update(t, wanted, metric, ridge=hparams.ridge, asks=asks)
        change = {i: change[i] + more[i] for i in layers}
    changes = {}
    for i, delta in change.items():
        mlp = arch.layers[i].mlp
        changes[mlp.out_name] = Change(dense=delta.T.contiguous() if mlp.transposed else delta)
    return WeightEdit.of(model._module, changes)
