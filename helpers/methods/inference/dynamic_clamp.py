"""Dynamic SAE clamping: only in a text in which the features are active often enough."""

from dataclasses import dataclass

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.contrast import check_number
from helpers.methods.fitting.sae_latents import SITES
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.inference.clamp import clamping
from helpers.methods.registry import Hyperparameters, method


@dataclass(frozen=True)
class DynamicClampHparams(Hyperparameters):
    """Hyperparameters of `dynamic_clamp`.

    Attributes:
        saes: Folders of SAEs of the sites `mlp_in` or `mlp`.
        n_latents: Latents of each SAE.
        strength: As in `sae_clamp`.
        share: Threshold, between 0 and 1.
        n_subjects: How many other subjects.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 1
    strength: float = 4.0
    share: float = 0.05
    n_subjects: int = 24


@method("dynamic_clamp", family="inference")
def dynamic_clamp(
    model: LanguageModel, pair: ConceptPair, hparams: DynamicClampHparams, *, seed: int = 0
) -> HookIntervention:
    """`sae_clamp`, once more than `share` of the tokens have an active latent (DSG, 2025).

    Muhamed et al. 2025, "SAEs Can Improve Unlearning: Dynamic Sparse Autoencoder Guardrails", look
    at the whole input and choose the threshold on retain data. Here the share is over the tokens so
    far, so that what is said of a token does not depend on what follows it.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.

    Raises:
        UserError: No SAE is given, one is of another model or site, or a number is out of range.
    """
    check_number("strength", hparams.strength, 0, 1e4)
    check_number("share", hparams.share, 0, 1)
    return clamping(
        model,
        pair,
        "dynamic_clamp",
        saes=hparams.saes,
        n_latents=hparams.n_latents,
        strength=hparams.strength,
        share=hparams.share,
        n_subjects=hparams.n_subjects,
        seed=seed,
    )


dynamic_clamp.reads = SITES
