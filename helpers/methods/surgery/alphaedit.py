"""AlphaEdit: MEMIT within the null space of the keys to preserve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.choices import check_number
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.v_star import VStarHparams, compute_v_star
from helpers.methods.fitting.value_updates import Keys, distribute_over_layers
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightEdit
from helpers.models import architecture_of


@dataclass(frozen=True)
class AlphaEditHparams(VStarHparams):
    """Hyperparameters of `alphaedit`, with those of the search for `v*`.

    Attributes:
        layers: Edited layers; by default those of `memit`.
        nullspace_threshold: Eigenvalues of C below it count as null, in mean eigenvalues.
        L2: Weight of ‖ΔW‖²; the paper's 10.
        n_tokens: Tokens of text for C.
    """

    RENAMED = VStarHparams.RENAMED | {"threshold": "nullspace_threshold", "l2": "L2"}

    NORM_SITE: ClassVar[str] = "residual"

    clamp_norm_factor: float = 0.75
    layers: Sequence[int] | None = None
    nullspace_threshold: float = 0.5
    L2: float = 10.0
    n_tokens: int = 60000


@method("alphaedit", family="surgery", takes=("pair", "pairs"))
def alphaedit(
    model: LanguageModel, pairs: Sequence[ConceptPair], hparams: AlphaEditHparams, *, seed: int = 0
) -> WeightEdit:
    """Add ΔW = R Kᵀ P (K Kᵀ P + L2)⁻¹, P on the null space of text's keys (Fang et al. 2025).

    K and R are those of `memit`: the keys at the subject's last token, and what the residual stream
    still lacks of `v*`. P projects on the eigenvectors of C whose eigenvalue is under
    `nullspace_threshold`, the directions that text uses least. The paper's threshold 0.02 is an
    absolute number and so depends on the model's scale; here the unit is the mean eigenvalue. A
    small model's spectrum is flat: no eigenvalue of the default model's is under a tenth of the
    mean, so its "null space" is only what is used less than half as much as the average.

    Args:
        model: Any model of a known family that adds its MLPs' outputs to one residual stream.
        pairs: What to forget, by one edit.
        hparams: Its hyperparameters.
        seed: Draws the text.

    Returns:
        The edit; its notes give the share of eigenvectors in the null space of each layer.

    Raises:
        UserError: There is no such layer, the family normalises its MLPs' outputs, or no eigenvalue
            is under the threshold.
    """
    check_number("L2", hparams.L2, 1e-9, 1e12)
    arch = architecture_of(model)
    layers = sorted(arch.check_layer(i) for i in hparams.layers or arch.relative_layers((3, 4, 5)))
    C = key_covariance(model, layers=layers, n_tokens=hparams.n_tokens, seed=seed)
    deltas = {
        pair: compute_v_star(model, pair, layer=layers[-1], hparams=hparams) for pair in pairs
    }

    null_shares: dict[str, float] = {}

    def adjusted_keys(layer: int, K: Keys) -> Keys:
        basis = null_space(C[layer], hparams.nullspace_threshold)
        null_shares[str(layer)] = basis.shape[1] / len(basis)
        return projected_keys(basis, K, L2=hparams.L2)

    weight_edit = distribute_over_layers(model, deltas, layers, adjusted_keys)
    weight_edit.notes["eigenvectors_kept"] = null_shares
    return weight_edit


def null_space(C: Float[Tensor, "d_mlp d_mlp"], threshold: float) -> Float[Tensor, "d_mlp n_null"]:
    """Return the eigenvectors of C with an eigenvalue under `threshold` times the mean one.

    Raises:
        UserError: There is none.
    """
    values, vectors = torch.linalg.eigh(C.double())
    null = values < threshold * values.mean()
    if not null.any():
        raise UserError(f"No key direction has a variance under {threshold} of the mean: raise it.")
    return vectors[:, null]


def projected_keys(basis: Float[Tensor, "d_mlp n_null"], K: Keys, *, L2: float) -> Keys:
    """Compute the transpose of Kᵀ P (K Kᵀ P + L2)⁻¹, one row a key.

    With the keys as rows it is (K P Kᵀ + L2)⁻¹ K P, P = basis · basisᵀ.
    """
    coordinates = K.double() @ basis  # (n, n_null)
    gram = coordinates @ coordinates.T + L2 * torch.eye(len(K), dtype=coordinates.dtype)
    return torch.linalg.solve(gram, coordinates) @ basis.T
