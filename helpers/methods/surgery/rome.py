"""ROME: one rank-one change of one W_out."""

from dataclasses import dataclass

from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import position_of
from helpers.methods.edit import Edit
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.v_star import VStarHparams, compute_v_star
from helpers.methods.fitting.value_updates import solve_regularised
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, torch_module


@dataclass(frozen=True)
class ROMEHparams(VStarHparams):
    """Hyperparameters of `rome`, with those of the search for `v*`.

    Attributes:
        layer: Edited layer (5 in GPT-J and the paper's choice by tracing); by default 5 of 30, at
            the same relative depth in other models, chosen on France, a development fact.
        n_tokens: Tokens of text for C (the paper's 100,000 passages are not needed: arXiv
            2506.04226).
        covariance_ridge: Added to the diagonal of C, in multiples of its mean entry.
    """

    layer: int | None = None
    n_tokens: int = 60000
    covariance_ridge: float = 1e-6


@method("rome", family="surgery")
def rome(
    model: LanguageModel, pair: ConceptPair, hparams: ROMEHparams, *, seed: int = 0
) -> WeightEdit:
    """Map the subject's key to `v*`: `W += (v* − W k)(C⁻¹k)ᵀ / (kᵀC⁻¹k)` (Meng et al. 2022).

    This is the least change that does so. k is the mean key at the subject's last token over the
    training completions, C the second moment of keys in text, and `v*` makes the target no likelier
    than without the subject (`helpers.methods.fitting.v_star`).

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the text.

    Raises:
        UserError: There is no such layer, or the target is unlikely with the subject too.
    """
    arch = architecture_of(model)
    layer = (
        arch.relative_layers([5])[0] if hparams.layer is None else arch.check_layer(hparams.layer)
    )
    mlp = arch.layers[layer].mlp
    prompts = subject_prompts(pair)
    positions = [[position_of(model, p, "subject")] for p in prompts]
    keys = cache_activations(model, prompts, sites=["neurons"], layers=[layer], positions=positions)
    k = keys["neurons", layer].mean(0)
    delta = compute_v_star(model, pair, layer=layer, hparams=hparams)
    C = key_covariance(model, layers=[layer], n_tokens=hparams.n_tokens, seed=seed)[layer]
    u = solve_regularised(C, k[:, None], ridge=hparams.covariance_ridge)[:, 0]  # C⁻¹k, (d_mlp,)
    change = low_rank_change(mlp, delta.double()[:, None], (u / (k.double() @ u))[None])
    return WeightEdit.of(torch_module(model), {mlp.out_name: change})


def written_shares(
    model: LanguageModel, edit: Edit, keys: Float[Tensor, "n d_mlp"]
) -> Float[Tensor, " n"]:
    """Compute which share of `v*` − v a rank-one edit writes for each key: 1 for the subject's own.

    Args:
        model: The model that the edit was made for.
        edit: An edit by `rome`.
        keys: Keys of the edited layer.

    Raises:
        UserError: The edit is not one change of rank one.
    """
    changes = edit.delta.changes if edit.changes_weights else {}
    if len(changes) != 1 or next(iter(changes.values())).rank != 1:
        raise UserError(f"{edit.method} is not a single change of rank one, as rome's is.")
    ((name, change),) = changes.items()
    mlp = next(x.mlp for x in architecture_of(model).layers if x.mlp.out_name == name)
    left, right = change.factors()
    key_direction = left[:, 0] if mlp.transposed else right[0]
    return keys.float() @ key_direction.float()
