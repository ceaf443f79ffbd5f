"""SAE clamping of a text: where a latent that is selective for it is active, set it negative."""

from typing import Any

import numpy as np
from nnsight import LanguageModel
from torch import Tensor

from helpers.methods.fitting.corpus_latents import CorpusLatentsHparams, latents_of_corpus
from helpers.methods.fitting.retain_budget import RetainBudget
from helpers.methods.fitting.sae_latents import SITES
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.inference.clamp import KIND
from helpers.methods.registry import method
from helpers.requests import TextRequest

STRENGTHS = np.geomspace(0.25, 64, 17)  # in mean activations of a latent


@method("sae_clamp_text", family="inference", takes=("text",), sae_sites=SITES)
def sae_clamp_text(
    model: LanguageModel, request: TextRequest, hparams: CorpusLatentsHparams, *, seed: int = 0
) -> HookIntervention:
    """Set z_f ← −c · (mean active z_f) where z_f > 0, with the SAE's error kept.

    Farrell et al. 2024, "Applying Sparse Autoencoders to Unlearn Knowledge in Language Models",
    section 3. Their −c is one number for all latents; here it is in units of each. The largest c
    that the budget allows is taken.

    Args:
        model: Any model of a known family.
        request: What to forget.
        hparams: Its hyperparameters.
        seed: Unused: nothing is random.

    Raises:
        UserError: No SAE is given, one is of another model or site, a number is out of range, no
            latent is selective, or the weakest clamp passes the budget.
    """
    budget = RetainBudget(model, request, hparams)
    chosen = latents_of_corpus(model, budget, hparams, "sae_clamp_text")
    parts: dict[str, Tensor] = {
        f"{number}.{name}": tensor.detach().cpu()
        for number, x in enumerate(chosen)
        for name, tensor in x.sae.tensors().items()
    }

    def clamp(strength: float) -> HookIntervention:
        entries: list[dict[str, Any]] = [
            {
                "cfg": x.sae.cfg.to_dict(),
                "latents": x.latents.tolist(),
                "values": (-strength * x.mean_activation).tolist(),
            }
            for x in chosen
        ]
        settings = {"min_active_fraction": 0.0, "saes": entries}
        return HookIntervention(KIND, settings, parts, {"latents": [x.note() for x in chosen]})

    strength, made = budget.strongest_intervention(KIND, STRENGTHS.tolist(), clamp)
    made.notes["strength"] = strength
    return made
