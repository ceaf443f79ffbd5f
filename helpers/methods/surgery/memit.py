"""MEMIT: the change of one value spread over several layers, by least squares."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.methods.fitting.contrast import check_number
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.v_star import VStarHparams, compute_v_star
from helpers.methods.fitting.value_updates import Row, solve, spread
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of


@dataclass(frozen=True)
class MEMITHparams(Hyperparameters):
    """Hyperparameters of `memit`.

    Attributes:
        layers: Edited layers (3 to 8 in the paper's GPT-J); by default 3 to 5 of 30, ROME's and
            below, at the same relative depth in other models; not swept.
        weight: λ. The paper's 15,000 to 20,000 preserve thousands of facts edited at once; for one
            fact ours is far lower.
        steps: As in `VStarHparams`.
        lr: Likewise.
        kl: Likewise.
        decay: Likewise.
        clamp: Likewise (0.75 in the paper; ours as in ROME for small models).
        n_tokens: Tokens of ordinary text for C.
    """

    layers: Sequence[int] | None = None
    weight: float = 100.0
    steps: int = 20
    lr: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 3.0
    n_tokens: int = 60000


@method("memit", family="surgery")
def memit(
    model: LanguageModel, pair: ConceptPair, hparams: MEMITHparams, *, seed: int = 0
) -> WeightEdit:
    """ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ in every layer, in float64 (Meng et al. 2023, equation 14).

    K are the keys at the subject's last token, one column a training completion; R is what the
    residual stream after the last edited layer still lacks of `v*`, divided by the layers to go.

    Args:
        model: Any model of a known family that adds its MLPs' outputs to one residual stream.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the text.

    Raises:
        UserError: There is no such layer, or the family normalises what its MLPs write.
    """
    layers = hparams.layers
    check_number("weight", hparams.weight, 1e-9, 1e12)
    arch = architecture_of(model)
    layers = sorted(arch.check_layer(i) for i in layers or arch.relative_layers((3, 4, 5)))
    C = key_covariance(model, layers=layers, n_tokens=hparams.n_tokens, seed=seed)
    settings = VStarHparams(hparams.steps, hparams.lr, hparams.kl, hparams.decay, hparams.clamp)
    delta = compute_v_star(model, pair, layer=layers[-1], settings=settings)
    return spread(
        model, pair, delta, layers, lambda i, K: least_squares(C[i], K, weight=hparams.weight)
    )


def least_squares(C: Float[Tensor, "d_mlp d_mlp"], K: Row, *, weight: float) -> Row:
    """Kᵀ(λC + K Kᵀ)⁻¹ with the keys as rows: by Woodbury (K C⁻¹Kᵀ + λ)⁻¹ K C⁻¹."""
    K = K.double()
    whitened = solve(C, K.T)  # (d_mlp, n)
    gram = K @ whitened + weight * torch.eye(len(K), dtype=K.dtype)
    return torch.linalg.solve(gram, whitened.T)
