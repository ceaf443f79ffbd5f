"""Dynamic SAE clamping: only in texts in which the features are active often enough."""

from dataclasses import dataclass
from typing import ClassVar

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
        strength: Latents are set to minus this many of their mean activations; 0 is ablation to
            zero.
        min_active_fraction: Latents are set once more than this fraction of a text's tokens so far
            had an active one; between 0 and 1.
        n_subjects: Other subjects with which the subject is compared.
    """

    RENAMED: ClassVar = {"share": "min_active_fraction"}

    saes: tuple[str, ...] = ()
    n_latents: int = 1
    strength: float = 4.0
    min_active_fraction: float = 0.05
    n_subjects: int = 24


@method("dynamic_clamp", family="inference", sae_sites=SITES)
def dynamic_clamp(
    model: LanguageModel, pair: ConceptPair, hparams: DynamicClampHparams, *, seed: int = 0
) -> HookIntervention:
    """Clamp latents like `sae_clamp` where enough of a text's tokens have an active one (DSG).

    Muhamed et al. 2025, "SAEs Can Improve Unlearning: Dynamic Sparse Autoencoder Guardrails", count
    over the whole input and choose the threshold on retain data. Here the fraction is of the tokens
    so far, so that a prediction does not depend on later tokens.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the subjects to compare with.

    Raises:
        UserError: No SAE is given, one is of another model or site, or a number is out of range.
    """
    check_number("strength", hparams.strength, 0, 1e4)
    check_number("min_active_fraction", hparams.min_active_fraction, 0, 1)
    return clamping(
        model,
        pair,
        "dynamic_clamp",
        saes=hparams.saes,
        n_latents=hparams.n_latents,
        strength=hparams.strength,
        min_active_fraction=hparams.min_active_fraction,
        n_subjects=hparams.n_subjects,
        seed=seed,
    )
