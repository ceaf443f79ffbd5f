"""PISCES: take a concept's features out of the value vectors that write them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods.change import Change
from helpers.methods.fitting.contrast import check_number
from helpers.methods.fitting.sae_latents import load_saes_for, sae_states, specific_latents
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import MLPArchitecture, architecture_of

SITE = "mlp"


@dataclass(frozen=True)
class PISCESHparams(Hyperparameters):
    """Hyperparameters of `pisces`.

    Attributes:
        saes: Folders of SAEs of the site `mlp`, one a layer.
        n_latents: Features of each SAE.
        tau: The paper's 0.95 down to 0.2.
        mu: The paper's 4 to 50.
        n_subjects: How many other subjects.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 1
    tau: float = 0.5
    mu: float = 10.0
    n_subjects: int = 24


@method("pisces", family="surgery")
def pisces(
    model: LanguageModel, pair: ConceptPair, hparams: PISCESHparams, *, seed: int = 0
) -> WeightEdit:
    """Rewrite the columns of W_out that write a feature (Gur-Arieh et al. 2025).

    A column v is rewritten when `|v · enc_f|` is over `tau` times the largest such number. Its code
    z = SAE.encode(v) gets `z_f = −mu · max · sign(v · enc_f)`, and the new column is
    SAE.decode(z) + (v − SAE.decode(SAE.encode(v))): what the SAE does not explain stays.

    The paper chooses features by hand from those whose readout names the concept; here they are the
    target's by selectivity, as in `sae_direction`.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.

    Raises:
        UserError: No SAE is given, one is of another model or site, two are of one layer, or a
            hyperparameter is out of range.
    """
    check_number("tau", hparams.tau, 0, 1)
    arch = architecture_of(model)
    changes: dict[str, Change] = {}
    notes = []
    for sae in load_saes_for(model, hparams.saes, (SITE,), "pisces"):
        layer = arch.check_layer(sae.cfg.layer)
        mlp = arch.layers[layer].mlp
        if mlp.out_name in changes:
            raise UserError(f"Two SAEs are of layer {layer}: give one a layer.")
        inside, outside = sae_states(model, pair, sae, n_subjects=hparams.n_subjects, seed=seed)
        features = specific_latents(sae, inside, outside, n=hparams.n_latents)
        change, columns = rewritten(mlp, sae, features, tau=hparams.tau, mu=hparams.mu)
        changes[mlp.out_name] = change
        notes.append({"layer": layer, "latents": features.tolist(), "columns": columns.tolist()})
    return WeightEdit.of(model._module, changes, notes={"latents": notes})


pisces.reads = (SITE,)


@torch.inference_mode()
def rewritten(
    mlp: MLPArchitecture, sae, features: Tensor, *, tau: float, mu: float
) -> tuple[Change, Tensor]:
    """The change of W_out, and which columns it rewrites."""
    values: Float[Tensor, "d_mlp d_model"] = mlp.W_out().detach().float().cpu().T
    projections = values @ sae.W_enc.detach()[:, features].float()  # (d_mlp, features)
    largest = projections.abs().amax(0)
    over = projections.abs() > tau * largest
    columns = over.any(1).nonzero()[:, 0]
    v = values[columns]
    before = sae.encode(v)
    after = before.clone()
    sign = projections[columns].sign()
    after[:, features] = torch.where(over[columns], -mu * largest * sign, before[:, features])
    difference = sae.decode(after) - sae.decode(before)  # (columns, d_model)
    pick = torch.eye(len(values))[columns]
    return low_rank_change(mlp, difference.T.clone(), pick), columns
