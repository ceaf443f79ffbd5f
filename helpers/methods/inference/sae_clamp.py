"""SAE clamping: where a feature of the subject is active, set it to a negative value."""

from dataclasses import dataclass

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.contrast import check_number
from helpers.methods.fitting.sae_latents import SITES
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.inference.clamp import clamping
from helpers.methods.registry import Hyperparameters, method


@dataclass(frozen=True)
class SAEClampHparams(Hyperparameters):
    """Hyperparameters of `sae_clamp`.

    Attributes:
        saes: Folders of SAEs of the sites `mlp_in` or `mlp`.
        n_latents: Latents of each SAE.
        strength: Latents are set to minus this many of their mean activations; 0 is ablation to
            zero.
        n_subjects: Other subjects with which the subject is compared.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 3
    strength: float = 4.0
    n_subjects: int = 24


@method("sae_clamp", family="inference", sae_sites=SITES)
def sae_clamp(
    model: LanguageModel, pair: ConceptPair, hparams: SAEClampHparams, *, seed: int = 0
) -> HookIntervention:
    """Set z_f ← −m where z_f > 0, with the SAE's error kept (Farrell et al. 2024).

    The paper's m is 25 to 200 in units of its SAEs, and ablation to zero alone does nothing. Here m
    is `strength` times the latent's mean activation on the subject's prompts. The latents are those
    that tell the subject's prompts from other subjects' by AUROC.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.

    Raises:
        UserError: No SAE is given, one is of another model or site, or a number is out of range.
    """
    check_number("strength", hparams.strength, 0, 1e4)
    return clamping(
        model,
        pair,
        "sae_clamp",
        saes=hparams.saes,
        n_latents=hparams.n_latents,
        strength=hparams.strength,
        min_active_fraction=0.0,
        n_subjects=hparams.n_subjects,
        seed=seed,
    )
