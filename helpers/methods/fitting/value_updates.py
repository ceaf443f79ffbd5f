"""Least-squares updates of a value matrix: new outputs for some keys, little change for all others."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of
from helpers.tracing import cache_activations

RIDGE = 1e-6  # of the mean variance, so that a sample of text can be inverted


Row = Float[Tensor, "n d_mlp"]


def solve(C: Float[Tensor, "width width"], K: Float[Tensor, "width n"]) -> Float[Tensor, "width n"]:
    """(C + ridge)⁻¹ K in float64.

    Raises:
        UserError: C is singular all the same.
    """
    C = C.double()
    ridge = RIDGE * C.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(C + ridge * torch.eye(len(C), dtype=C.dtype))
    if failed:
        raise UserError(
            "The covariance of the keys is singular: read more text (a larger n_tokens)."
        )
    return torch.cholesky_solve(K.double(), factor)


def spread(
    model: LanguageModel,
    pair: ConceptPair,
    delta: Float[Tensor, " d_model"],
    layers: Sequence[int],
    read: Callable[[int, Row], Row],
) -> WeightEdit:
    """Reach the residual stream + `delta` after the last of `layers`, a share in each layer.

    Layer by layer, with the edits so far in place: take the keys, let `read` turn them into the
    right factor, and write the share of what is still lacking. The model is left as it was.

    Args:
        model: Any model of a known family.
        pair: Whose training completions are used.
        delta: `v*` − v at the last layer.
        layers: Edited layers, lowest first.
        read: (layer, keys) → right factor of the change, one row a key.

    Raises:
        UserError: The family normalises what its MLPs write, so writes cannot be shared out.
    """
    arch = architecture_of(model)
    if any(arch.layers[i].mlp.out_envoy is not arch.layers[i].mlp_write for i in layers):
        raise UserError(
            "This family normalises what its MLPs write, so one write cannot be shared out over "
            "layers: use rome, which edits a single one."
        )
    prompts = subject_prompts(pair)
    changes, originals = {}, {}
    wanted = None
    try:
        for done, i in enumerate(layers):
            mlp = arch.layers[i].mlp
            now = cache_activations(
                model, prompts, sites=["residual"], layers=[layers[-1]], position="subject"
            )["residual"][:, 0].double()
            wanted = now + delta if wanted is None else wanted
            K = cache_activations(model, prompts, sites=["neurons"], layers=[i], position="subject")
            share = (wanted - now) / (len(layers) - done)  # (n, d_model)
            change = low_rank_change(mlp, share.T, read(i, K["neurons"][:, 0]))
            weight = mlp.out_module.weight
            changes[mlp.out_name], originals[weight] = change, weight.detach().clone()
            with torch.no_grad():
                weight += change.matrix().to(weight)
    finally:
        with torch.no_grad():
            for weight, original in originals.items():
                weight.copy_(original)
    return WeightEdit.of(model._module, changes)
