"""Dynamic SAE clamping: only in texts in which the features are active often enough."""

from dataclasses import dataclass
from typing import ClassVar

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.io.choices import check_number
from helpers.methods.fitting.sae_latents import SITES
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.inference.clamp import ClampHparams, clamping
from helpers.methods.registry import method


@dataclass(frozen=True)
class DynamicClampHparams(ClampHparams):
    """Hyperparameters of `dynamic_clamp`, with those of `sae_clamp`.

    Attributes:
        n_latents: Latents of each SAE.
        min_active_fraction: Latents are set once more than this fraction of a text's tokens so far
            had an active one; between 0 and 1.
    """

    RENAMED: ClassVar = {"share": "min_active_fraction"}

    n_latents: int = 1
    min_active_fraction: float = 0.05


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
    check_number("min_active_fraction", hparams.min_active_fraction, 0, 1)
    fraction = hparams.min_active_fraction
    return clamping(model, pair, "dynamic_clamp", hparams, min_active_fraction=fraction, seed=seed)
