"""SAE clamping: where a feature of the subject is active, set it to a negative value."""

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.sae_latents import SITES
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.inference.clamp import ClampHparams, clamping
from helpers.methods.registry import method


@method("sae_clamp", family="inference", sae_sites=SITES)
def sae_clamp(
    model: LanguageModel, pair: ConceptPair, hparams: ClampHparams, *, seed: int = 0
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
    return clamping(model, pair, "sae_clamp", hparams, min_active_fraction=0.0, seed=seed)
