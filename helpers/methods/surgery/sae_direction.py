"""Project the directions of SAE latents out of the MLP; and a control with random latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.methods.change import Change
from helpers.methods.fitting.contrast import input_matrices
from helpers.methods.fitting.sae_latents import SITES, load_saes_for, sae_states, specific_latents
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import Architecture, architecture_of, torch_module
from helpers.sae import SAE


@dataclass(frozen=True)
class SAEDirectionHparams(Hyperparameters):
    """Hyperparameters of `sae_direction`, and of its control `random_latents`.

    Attributes:
        saes: Folders of SAEs of the sites `mlp_in` or `mlp`; several of one layer and site add up.
        n_latents: Latents of each SAE.
        n_subjects: Other subjects with which the subject is compared.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 1
    n_subjects: int = 24


@method("sae_direction", family="surgery", sae_sites=SITES)
def sae_direction(
    model: LanguageModel, pair: ConceptPair, hparams: SAEDirectionHparams, *, seed: int = 0
) -> WeightEdit:
    """Set W_in ← W_in (I − D⁺D), or W_out ← (I − D⁺D) W_out, D the latents' decoder rows.

    With an SAE of `mlp_in` the latents are the subject's, read at its last token, and leave the
    keys. With one of `mlp` they are the target's, read at the prompt's last token, and leave the
    values. A latent is the subject's when it tells its prompts from other subjects' (AUROC), the
    one that differs most in activation first.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.

    Returns:
        The edit; its notes name the latents.

    Raises:
        UserError: No SAE is given, one is of another model or site, or it has too few latents.
    """
    states = _subject_states(model, pair, hparams, seed=seed)
    latents = _choose_latents(states, n=hparams.n_latents, seed=seed)
    changes = _erase_all(architecture_of(model), latents)
    return WeightEdit.of(torch_module(model), changes, notes={"latents": _notes(latents)})


@method("random_latents", family="control", sae_sites=SITES)
def random_latents(
    model: LanguageModel, pair: ConceptPair, hparams: SAEDirectionHparams, *, seed: int = 0
) -> WeightEdit:
    """Erase as many latents as `sae_direction`, drawn among those active on any subject.

    The change is scaled to the norm that `sae_direction` would have.

    Args:
        model: Any model of a known family.
        pair: The fact that `sae_direction` would forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with, and the latents.
    """
    arch = architecture_of(model)
    states = _subject_states(model, pair, hparams, seed=seed)
    latents = _choose_latents(states, n=hparams.n_latents, seed=seed, random=True)
    changes = _erase_all(arch, latents)
    specific = _choose_latents(states, n=hparams.n_latents, seed=seed)
    for name, reference in _erase_all(arch, specific).items():
        scale = reference.matrix().norm() / changes[name].matrix().norm()
        changes[name] = Change(left=changes[name].left * scale, right=changes[name].right)
    return WeightEdit.of(torch_module(model), changes, notes={"latents": _notes(latents)})


SubjectStates = tuple[SAE, Float[Tensor, "n width"], Float[Tensor, "m width"]]
ChosenLatents = tuple[SAE, Int[Tensor, " latents"]]


def _subject_states(
    model: LanguageModel, pair: ConceptPair, hparams: SAEDirectionHparams, *, seed: int
) -> list[SubjectStates]:
    """Return each SAE with its inputs for the subject's prompts and for other subjects'."""
    states = []
    for sae in load_saes_for(model, hparams.saes, SITES, "sae_direction"):
        architecture_of(model).check_layer(sae.cfg.layer)
        states.append(
            (sae, *sae_states(model, pair, sae, n_subjects=hparams.n_subjects, seed=seed))
        )
    return states


def _choose_latents(
    states: Sequence[SubjectStates], *, n: int, seed: int, random: bool = False
) -> list[ChosenLatents]:
    """Choose `n` latents of each SAE: the most specific ones, or random ones among the active.

    Args:
        states: From `_subject_states`.
        n: Latents of each SAE.
        seed: Draws random latents.
        random: Draw the latents.
    """
    return [
        (
            sae,
            specific_latents(
                sae, positives, negatives, n=n, random=random, seed=seed + sae.cfg.layer
            ),
        )
        for sae, positives, negatives in states
    ]


def _notes(chosen: Sequence[ChosenLatents]) -> list[dict[str, Any]]:
    """Return site, layer and latents of each SAE."""
    return [
        {"site": sae.cfg.site, "layer": sae.cfg.layer, "latents": latents.tolist()}
        for sae, latents in chosen
    ]


def _erase_all(arch: Architecture, chosen: Sequence[ChosenLatents]) -> dict[str, Change]:
    """Return the changes that erase the latents' decoder rows, one a site and layer."""
    rows: dict[tuple[str, int], list[Tensor]] = {}
    for sae, latents in chosen:
        rows.setdefault((sae.cfg.site, sae.cfg.layer), []).append(sae.W_dec.detach()[latents])
    changes: dict[str, Change] = {}
    for (site, layer), directions in rows.items():
        changes |= erase(arch, layer, torch.cat(directions), site=site)
    return changes


def erase(
    arch: Architecture, layer: int, directions: Float[Tensor, "n d_model"], *, site: str
) -> dict[str, Change]:
    """Return the changes that project directions out of the keys (`mlp_in`) or values (`mlp`)."""
    mlp = arch.layers[layer].mlp
    basis = torch.linalg.qr(directions.float().T).Q.T  # (n, d_model), orthonormal
    if site == "mlp_in":
        return {
            name: low_rank_change(mlp, -weight @ basis.T, basis)
            for name, weight in input_matrices(mlp)
        }
    W_out = mlp.W_out().detach().float().cpu()
    return {mlp.out_name: low_rank_change(mlp, -basis.T, basis @ W_out)}
