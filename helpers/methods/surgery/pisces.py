"""PISCES: remove a concept's SAE features from the value vectors that write them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.io.choices import check_number
from helpers.methods.change import Change
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.fitting.sae_latents import load_saes_for, sae_states, specific_latents
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import MLPArchitecture, architecture_of, torch_module
from helpers.sae import SAE

SITE = "mlp"


@dataclass(frozen=True)
class PISCESHparams(Hyperparameters):
    """Hyperparameters of `pisces`.

    Attributes:
        saes: Folders of SAEs of the site `mlp`, one a layer.
        n_latents: Features of each SAE.
        tau: A column is rewritten above this share of the largest projection on a feature; the
            paper's 0.95 down to 0.2.
        mu: Features are set to minus this many of their largest projections; the paper's 4 to 50.
        n_subjects: Other subjects with which the subject is compared.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 1
    tau: float = 0.5
    mu: float = 10.0
    n_subjects: int = 24


@method("pisces", family="surgery", sae_sites=(SITE,))
def pisces(
    model: LanguageModel, pair: ConceptPair, hparams: PISCESHparams, *, seed: int = 0
) -> WeightEdit:
    """Rewrite the columns of W_out that write a feature (Gur-Arieh et al. 2025).

    A column v is rewritten when `|v · enc_f|` is over `tau` times the largest such number. Its code
    z = SAE.encode(v) gets `z_f = −mu · max · sign(a)`, with a the sum of the signs of the neuron's
    activations on the concept: a neuron that is mostly negative there writes −v, so its column is
    turned the other way. The new column is SAE.decode(z) + (v − SAE.decode(SAE.encode(v))): what
    the SAE does not explain stays.

    The paper chooses features by hand from those whose top logit tokens name the concept. Here they
    are the target's, those that tell the subject's prompts from others' by AUROC.

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
        positives, negatives = sae_states(
            model, pair, sae, n_subjects=hparams.n_subjects, seed=seed
        )
        features = specific_latents(sae, positives, negatives, n=hparams.n_latents)
        neurons = cache_activations(
            model, subject_prompts(pair), sites=["neurons"], layers=[layer], positions="last"
        )["neurons", layer]
        signs = neurons.sign().sum(0).sign()
        change, columns = rewrite_columns(mlp, sae, features, signs, tau=hparams.tau, mu=hparams.mu)
        changes[mlp.out_name] = change
        notes.append({"layer": layer, "latents": features.tolist(), "columns": columns.tolist()})
    return WeightEdit.of(torch_module(model), changes, notes={"latents": notes})


@torch.inference_mode()
def rewrite_columns(
    mlp: MLPArchitecture,
    sae: SAE,
    features: Int[Tensor, " f"],
    signs: Float[Tensor, " d_mlp"],
    *,
    tau: float,
    mu: float,
) -> tuple[Change, Int[Tensor, " columns"]]:
    """Compute the change of W_out, and the indices of the columns that it rewrites.

    Args:
        mlp: The MLP.
        sae: An SAE of its output.
        features: Latents to remove.
        signs: Sign of each neuron's activation on the concept, by majority.
        tau: A column is rewritten above this share of the largest projection on a feature.
        mu: Features are set to minus this many of their largest projections.
    """
    values: Float[Tensor, "d_mlp d_model"] = mlp.W_out().detach().float().cpu().T
    projections = values @ sae.W_enc.detach()[:, features].float()  # (d_mlp, f)
    largest = projections.abs().amax(0)
    is_large = projections.abs() > tau * largest
    columns = is_large.any(1).nonzero()[:, 0]
    v = values[columns]
    code = sae.encode(v)
    new_code = code.clone()
    # Against the activation's sign: activation times column then writes the feature's opposite.
    target = -mu * largest * signs[columns, None]
    new_code[:, features] = torch.where(is_large[columns], target, code[:, features])
    # Only the difference of two reconstructions is added, which keeps what the SAE misses.
    difference = sae.decode(new_code) - sae.decode(code)  # (columns, d_model)
    one_hot = torch.eye(len(values))[columns]
    return low_rank_change(mlp, difference.T.clone(), one_hot), columns
