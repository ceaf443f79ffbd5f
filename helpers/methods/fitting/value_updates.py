"""Least-squares updates of W_out: new outputs for some keys, little change for all others."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.snapshots import preserved_parameters
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, torch_module

Keys = Float[Tensor, "n d_mlp"]  # one key a row


def solve_regularised(
    C: Float[Tensor, "d_mlp d_mlp"], K: Float[Tensor, "d_mlp n"], *, ridge: float
) -> Float[Tensor, "d_mlp n"]:
    """Compute (C + r I)⁻¹ K in float64, with r = `ridge` · mean diagonal entry of C.

    Raises:
        UserError: C is singular all the same.
    """
    C = C.double()
    # A sample of text may have fewer keys than C has dimensions: the ridge makes it invertible.
    scaled_ridge = ridge * C.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(C + scaled_ridge * torch.eye(len(C), dtype=C.dtype))
    if failed:
        raise UserError(
            "The covariance of the keys is singular: read more text (a larger n_tokens)."
        )
    return torch.cholesky_solve(K.double(), factor)


def distribute_over_layers(
    model: LanguageModel,
    deltas: Mapping[ConceptPair, Float[Tensor, " d_model"]],
    layers: Sequence[int],
    adjusted_keys: Callable[[int, Keys], Keys],
) -> WeightEdit:
    """Distribute the residual of MEMIT over layers: residual stream + δ after the last one.

    Layer by layer, with the changes so far in place: read the keys of all facts, compute the right
    factor from them, and write what the residual stream still lacks, divided by the number of
    layers to go. The model is left as it was.

    Args:
        model: Any model of a known family.
        deltas: Fact, whose training completions give its keys → δ = `v*` − v at the last layer.
        layers: Edited layers, lowest first.
        adjusted_keys: (layer, keys) → right factor of the change, one row a key.

    Raises:
        UserError: The family normalises its MLPs' outputs, so they cannot be shared out.
    """
    arch = architecture_of(model)
    if any(arch.layers[i].mlp.out_envoy is not arch.layers[i].mlp_write for i in layers):
        raise UserError(
            "This family normalises what its MLPs write, so one write cannot be shared out over "
            "layers: use rome, which edits a single one."
        )
    prompts_of = {pair: subject_prompts(pair) for pair in deltas}
    prompts = [prompt for of_pair in prompts_of.values() for prompt in of_pair]
    delta = torch.stack([deltas[pair] for pair in prompts_of for _ in prompts_of[pair]])

    def at_subject(site: str, layer: int) -> Float[Tensor, "n width"]:
        activations = cache_activations(
            model, prompts, sites=[site], layers=[layer], positions="subject"
        )
        return activations[site, layer]

    changes = {}
    target = None  # residual stream after the last layer that the edit should reach
    with preserved_parameters(torch_module(model), [arch.layers[i].mlp.out_name for i in layers]):
        for n_done, i in enumerate(layers):
            mlp = arch.layers[i].mlp
            residual_stream = at_subject("residual", layers[-1]).double()
            target = residual_stream + delta if target is None else target
            keys = at_subject("neurons", i)
            resid = (target - residual_stream) / (len(layers) - n_done)  # (n, d_model)
            change = low_rank_change(mlp, resid.T, adjusted_keys(i, keys))
            changes[mlp.out_name] = change
            weight = mlp.out_module.weight
            with torch.no_grad():
                weight += change.matrix().to(weight)
    return WeightEdit.of(torch_module(model), changes)
