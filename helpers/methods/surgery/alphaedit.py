"""AlphaEdit: MEMIT within the null space of the keys to preserve."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.fitting.contrast import check_number
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.v_star import VStarHparams, compute_v_star
from helpers.methods.fitting.value_updates import Row, spread
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of


@dataclass(frozen=True)
class AlphaEditHparams(Hyperparameters):
    """Hyperparameters of `alphaedit`.

    Attributes:
        layers: Edited layers; by default as `memit`.
        threshold: In mean eigenvalues of C.
        l2: The paper's 10.
        steps: As in `VStarHparams`.
        lr: Likewise.
        kl: Likewise.
        decay: Likewise.
        clamp: Likewise.
        n_tokens: Tokens of ordinary text for C.
    """

    layers: Sequence[int] | None = None
    threshold: float = 0.5
    l2: float = 10.0
    steps: int = 20
    lr: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 3.0
    n_tokens: int = 60000


@method("alphaedit", family="surgery")
def alphaedit(
    model: LanguageModel, pair: ConceptPair, hparams: AlphaEditHparams, *, seed: int = 0
) -> WeightEdit:
    """ΔW = R Kᵀ P (K Kᵀ P + L2)⁻¹, P on the null space of ordinary keys (Fang et al. 2025).

    K and R are as in `memit`. P projects on the eigenvectors of C whose eigenvalue is under
    `threshold`: what ordinary text uses least. The paper's threshold 0.02 is an absolute number and
    so depends on the model's scale; here it counts in mean eigenvalues. A small model's spectrum is
    flat: no eigenvalue of the default model's is under a tenth of the mean, so its "null space" is
    only what is used less than half as much as the average.

    Args:
        model: As in `memit`.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the text.

    Returns:
        The delta; its notes give the share of eigenvectors kept in each layer.

    Raises:
        UserError: As in `memit`, or no eigenvalue is under the threshold.
    """
    layers = hparams.layers
    check_number("l2", hparams.l2, 1e-9, 1e12)
    arch = architecture_of(model)
    layers = sorted(arch.check_layer(i) for i in layers or arch.relative_layers((3, 4, 5)))
    C = key_covariance(model, layers=layers, n_tokens=hparams.n_tokens, seed=seed)
    settings = VStarHparams(hparams.steps, hparams.lr, hparams.kl, hparams.decay, hparams.clamp)
    value = compute_v_star(model, pair, layer=layers[-1], settings=settings)

    free: dict[str, float] = {}

    def read(i: int, K: Row) -> Row:
        basis = null_space(C[i], hparams.threshold)
        free[str(i)] = basis.shape[1] / len(basis)
        return within(basis, K, l2=hparams.l2)

    delta = spread(model, pair, value, layers, read)
    delta.notes["eigenvectors_kept"] = free
    return delta


def null_space(C: Float[Tensor, "d_mlp d_mlp"], threshold: float) -> Float[Tensor, "d_mlp n_free"]:
    """Eigenvectors of C with an eigenvalue under `threshold` times the mean one.

    Raises:
        UserError: There is none.
    """
    values, vectors = torch.linalg.eigh(C.double())
    free = values < threshold * values.mean()
    if not free.any():
        raise UserError(f"No key direction has a variance under {threshold} of the mean: raise it.")
    return vectors[:, free]


def within(basis: Float[Tensor, "d_mlp n_free"], K: Row, *, l2: float) -> Row:
    """Kᵀ P (K Kᵀ P + L2)⁻¹ with the keys as rows: (K P Kᵀ + L2)⁻¹ K P, P = basis · basisᵀ."""
    inside = K.double() @ basis  # (n, n_free)
    gram = inside @ inside.T + l2 * torch.eye(len(K), dtype=inside.dtype)
    return torch.linalg.solve(gram, inside) @ basis.T
