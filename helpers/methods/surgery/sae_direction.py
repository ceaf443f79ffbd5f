"""Project the directions of chosen SAE latents out of the MLP; and the control with random ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.methods.change import Change
from helpers.methods.fitting.contrast import input_matrices
from helpers.methods.fitting.sae_latents import SITES, load_saes_for, sae_states, specific_latents
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import Architecture, architecture_of


@dataclass(frozen=True)
class SAEDirectionHparams(Hyperparameters):
    """Hyperparameters of `sae_direction`.

    Attributes:
        saes: Folders of SAEs of the sites `mlp_in` or `mlp`; several of one layer and site add up.
        n_latents: Latents of each SAE.
        n_subjects: How many other subjects.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 1
    n_subjects: int = 24


@method("sae_direction", family="surgery")
def sae_direction(
    model: LanguageModel, pair: ConceptPair, hparams: SAEDirectionHparams, *, seed: int = 0
) -> WeightEdit:
    """W_in ← W_in (I − D⁺D), or W_out ← (I − D⁺D) W_out, D the decoder rows of the latents.

    With an SAE of `mlp_in` the latents are the subject's, read at its last token, and leave the
    keys; with one of `mlp` they are the target's, read at the prompt's last token, and leave the
    values. A latent is the subject's when it tells its prompts from other subjects' (AUROC), the
    one that differs most in activation first.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.

    Returns:
        The delta; its notes name the latents.

    Raises:
        UserError: No SAE is given, one is of another model or site, or it has too few latents.
    """
    return _erased(
        model, pair, hparams.saes, hparams.n_latents, hparams.n_subjects, seed, random=False
    )


@dataclass(frozen=True)
class RandomLatentsHparams(Hyperparameters):
    """Hyperparameters of `random_latents`.

    Attributes:
        saes: As there.
        n_latents: As there.
        n_subjects: As there.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 1
    n_subjects: int = 24


@method("random_latents", family="control")
def random_latents(
    model: LanguageModel, pair: ConceptPair, hparams: RandomLatentsHparams, *, seed: int = 0
) -> WeightEdit:
    """`sae_direction` with as many latents drawn among those active on any subject: its control.

    The change is scaled to the norm that `sae_direction` would have.

    Args:
        model: As there.
        pair: As there.
        hparams: Its hyperparameters.
        seed: Draws the latents too.
    """
    return _erased(
        model, pair, hparams.saes, hparams.n_latents, hparams.n_subjects, seed, random=True
    )


for _function in (sae_direction, random_latents):
    _function.reads = SITES


def _erased(model, pair, folders, n_latents, n_subjects, seed, *, random: bool) -> WeightEdit:
    arch = architecture_of(model)
    directions: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
    notes = []
    for sae in load_saes_for(model, folders, SITES, "sae_direction"):
        layer, site = arch.check_layer(sae.cfg.layer), sae.cfg.site
        inside, outside = sae_states(model, pair, sae, n_subjects=n_subjects, seed=seed)
        rows = []
        for draw in (False, True) if random else (False,):
            chosen = specific_latents(
                sae, inside, outside, n=n_latents, random=draw, seed=seed + layer
            )
            rows.append(sae.W_dec.detach()[chosen])
        directions.setdefault((site, layer), []).append((rows[0], rows[-1]))
        notes.append({"site": site, "layer": layer, "latents": chosen.tolist()})
    changes: dict[str, Change] = {}
    for (site, layer), pieces in directions.items():
        best, used = (torch.cat(rows) for rows in zip(*pieces, strict=True))
        made = erase(arch, layer, used, site=site)
        if random:  # equal norm
            for name, like in erase(arch, layer, best, site=site).items():
                share = like.matrix().norm() / made[name].matrix().norm()
                made[name] = Change(left=made[name].left * share, right=made[name].right)
        changes |= made
    return WeightEdit.of(model._module, changes, notes={"latents": notes})


def erase(
    arch: Architecture, layer: int, directions: Float[Tensor, "n d_model"], *, site: str
) -> dict[str, Change]:
    """Changes after which keys (`mlp_in`) or values (`mlp`) have nothing within the directions."""
    mlp = arch.layers[layer].mlp
    basis = torch.linalg.qr(directions.float().T).Q.T  # (n, d_model), orthonormal
    if site == "mlp_in":
        return {
            name: low_rank_change(mlp, -weight @ basis.T, basis)
            for name, weight in input_matrices(mlp)
        }
    W_out = mlp.W_out().detach().float().cpu()
    return {mlp.out_name: low_rank_change(mlp, -basis.T, basis @ W_out)}
