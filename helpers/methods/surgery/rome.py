"""ROME: one rank-one change of one W_out."""

from dataclasses import dataclass

from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.edit import Edit
from helpers.methods.fitting.contrast import states_at, subject_prompts
from helpers.methods.fitting.layer_stats import key_covariance
from helpers.methods.fitting.v_star import VStarHparams, compute_v_star
from helpers.methods.fitting.value_updates import solve
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of


@dataclass(frozen=True)
class ROMEHparams(Hyperparameters):
    """Hyperparameters of `rome`.

    Attributes:
        layer: Edited layer (5 in GPT-J and the paper's choice by tracing); by default 5 of 30, at
            the same relative depth in other models, chosen on France, a development fact.
        steps: As in `VStarHparams`; the paper's value.
        lr: Likewise.
        kl: Likewise.
        decay: Likewise.
        clamp: Likewise (4; 3 for small models).
        n_tokens: Tokens of ordinary text (the paper's 100,000 passages are not needed:
            arXiv 2506.04226).
    """

    layer: int | None = None
    steps: int = 20
    lr: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 3.0
    n_tokens: int = 60000


@method("rome", family="surgery")
def rome(
    model: LanguageModel, pair: ConceptPair, hparams: ROMEHparams, *, seed: int = 0
) -> WeightEdit:
    """`W += (v* − W k)(C⁻¹k)ᵀ / (kᵀC⁻¹k)`: the least change that maps key k to `v*` (Meng 2022).

    k is the mean key at the subject's last token over the training completions, C the second moment
    of keys in ordinary text, and `v*` makes the target no likelier than without the subject
    (`helpers.methods.fitting.v_star`).

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the text.

    Raises:
        UserError: There is no such layer, or the target is unlikely with the subject too.
    """
    layer = hparams.layer
    arch = architecture_of(model)
    layer = arch.relative_layers([5])[0] if layer is None else arch.check_layer(layer)
    mlp = arch.layers[layer].mlp
    k = states_at(model, subject_prompts(pair), layers=[layer], site="neurons")[layer].mean(0)
    delta = compute_v_star(
        model,
        pair,
        layer=layer,
        settings=VStarHparams(hparams.steps, hparams.lr, hparams.kl, hparams.decay, hparams.clamp),
    )
    C = key_covariance(model, layers=[layer], n_tokens=hparams.n_tokens, seed=seed)[layer]
    u = solve(C, k[:, None])[:, 0]
    change = low_rank_change(mlp, delta.double()[:, None], (u / (k.double() @ u))[None])
    return WeightEdit.of(model._module, {mlp.out_name: change})


def written_shares(
    model: LanguageModel, unlearning: Edit, keys: Float[Tensor, "n d_mlp"]
) -> Float[Tensor, " n"]:
    """How much of `v*` − v each key makes a rank-one edit write: 1 at the subject's own key.

    Args:
        model: The model that the edit was made for.
        unlearning: An edit by `rome`.
        keys: Keys of the edited layer.

    Raises:
        UserError: The edit is not one change of rank one.
    """
    changes = unlearning.delta.changes
    if len(changes) != 1 or next(iter(changes.values())).rank != 1:
        raise UserError(f"{unlearning.method} is not a single change of rank one, as rome's is.")
    ((name, change),) = changes.items()
    mlp = next(x.mlp for x in architecture_of(model).layers if x.mlp.out_name == name)
    left, right = change.factors()
    read = left[:, 0] if mlp.transposed else right[0]
    return keys.float() @ read.float()
