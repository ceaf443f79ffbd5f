"""MEMIT: new values of several facts distributed over several layers, by least squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.io.choices import check_number
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.v_star import VStarHparams, compute_v_star
from helpers.methods.fitting.value_updates import (
    Keys,
    distribute_over_layers,
    solve_regularised,
)
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of


@dataclass(frozen=True)
class MEMITHparams(VStarHparams):
    """Hyperparameters of `memit`, with those of the search for `v*`.

    Attributes:
        layers: Edited layers (3 to 8 in the paper's GPT-J); by default 3 to 5 of 30, ROME's and
            below, at the same relative depth in other models; not swept.
        mom2_update_weight: λ. The paper's 15,000 to 20,000 preserve thousands of facts edited at
            once; for one fact ours is far lower.
        n_tokens: Tokens of text for C.
        covariance_ridge: Added to the diagonal of C, in multiples of its mean entry.
    """

    RENAMED = VStarHparams.RENAMED | {"weight": "mom2_update_weight"}

    NORM_SITE: ClassVar[str] = "residual"

    clamp_norm_factor: float = 0.75
    layers: Sequence[int] | None = None
    mom2_update_weight: float = 100.0
    n_tokens: int = 60000
    covariance_ridge: float = 1e-6


@method("memit", family="surgery", takes=("pair", "pairs"))
def memit(
    model: LanguageModel, pairs: Sequence[ConceptPair], hparams: MEMITHparams, *, seed: int = 0
) -> WeightEdit:
    """Add ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ in every layer, in float64 (Meng et al. 2023, equation 14).

    K are the keys at the subject's last token, one column a training completion of each fact. R is
    what the residual stream after the last edited layer still lacks of `v*`, divided by the layers
    to go. Each fact has a `v*` of its own. Facts of one subject have nearly the same keys, so what
    is written there is a compromise between them.

    Args:
        model: Any model of a known family that adds its MLPs' outputs to one residual stream.
        pairs: What to forget, by one edit.
        hparams: Its hyperparameters.
        seed: Draws the text.

    Raises:
        UserError: There is no such layer, or the family normalises its MLPs' outputs.
    """
    check_number("mom2_update_weight", hparams.mom2_update_weight, 1e-9, 1e12)
    arch = architecture_of(model)
    layers = sorted(arch.check_layer(i) for i in hparams.layers or arch.relative_layers((3, 4, 5)))
    C = key_covariance(model, layers=layers, n_tokens=hparams.n_tokens, seed=seed)
    deltas = {
        pair: compute_v_star(model, pair, layer=layers[-1], hparams=hparams) for pair in pairs
    }

    def adjusted_keys(layer: int, K: Keys) -> Keys:
        return least_squares(
            C[layer],
            K,
            mom2_update_weight=hparams.mom2_update_weight,
            ridge=hparams.covariance_ridge,
        )

    return distribute_over_layers(model, deltas, layers, adjusted_keys)


def least_squares(
    C: Float[Tensor, "d_mlp d_mlp"], K: Keys, *, mom2_update_weight: float, ridge: float = 1e-6
) -> Keys:
    """Compute the transpose of Kᵀ(λC + K Kᵀ)⁻¹, one row a key.

    By Woodbury's identity it is (K C⁻¹Kᵀ + λ)⁻¹ K C⁻¹ with the keys as rows: only a system of as
    many equations as keys is solved for each λ.

    Args:
        C: Second moment of keys in text.
        K: The keys.
        mom2_update_weight: λ.
        ridge: Added to the diagonal of C, in multiples of its mean entry.
    """
    K = K.double()
    whitened = solve_regularised(C, K.T, ridge=ridge)  # C⁻¹Kᵀ, (d_mlp, n)
    gram = K @ whitened + mom2_update_weight * torch.eye(len(K), dtype=K.dtype)
    return torch.linalg.solve(gram, whitened.T)
