"""SAE latents that are active on a text to forget and hardly ever on what must stay."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.activations import activation_batches
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.io.choices import check_number
from helpers.methods.fitting.retain_budget import RetainBudget, TextHparams
from helpers.methods.fitting.sae_latents import SITES, load_saes_for
from helpers.sae import SAE
from helpers.training.examples import Example


@dataclass(frozen=True)
class CorpusLatentsHparams(TextHparams):
    """Hyperparameters of the methods that remove latents of a text.

    Attributes:
        saes: Folders of SAEs of the sites `mlp_in` or `mlp`, trained on such text too.
        n_latents: Largest number of latents of each SAE.
        max_retain_frequency: Latents that are active on a larger share of the retained tokens are
            left out; 0.01 in the paper.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 32
    max_retain_frequency: float = 0.01


@dataclass(frozen=True)
class CorpusLatents:
    """The latents of one SAE that are selective for a text.

    Attributes:
        sae: The SAE.
        latents: Their indices, the most frequent on the text first.
        mean_activation: Mean over the tokens of the text on which each is active.
    """

    sae: SAE
    latents: Int[Tensor, " f"]
    mean_activation: Float[Tensor, " f"]

    def note(self) -> dict:
        """Return plain data for an edit's notes."""
        cfg = self.sae.cfg
        return {"layer": cfg.layer, "site": cfg.site, "latents": self.latents.tolist()}


def latents_of_corpus(
    model: LanguageModel, budget: RetainBudget, hparams: CorpusLatentsHparams, name: str
) -> list[CorpusLatents]:
    """Choose latents by how often they are active (Farrell et al. 2024, section 3).

    Of those that are active on at most `max_retain_frequency` of the retained tokens, the
    `n_latents` that are active on most tokens to forget.

    Args:
        model: Any model of a known family.
        budget: The text.
        hparams: Numbers, and the SAEs.
        name: Name of the method, for sentences.

    Raises:
        UserError: No SAE is given, one does not fit, two are of one site and layer, a number is out
            of range, or no latent is selective for the text.
    """
    check_number("n_latents", hparams.n_latents, 1, 1e6)
    check_number("max_retain_frequency", hparams.max_retain_frequency, 0, 1)
    chosen, places = [], set()
    for sae in load_saes_for(model, hparams.saes, SITES, name):
        place = (sae.cfg.site, sae.cfg.layer)
        if place in places:
            raise UserError(f"Two SAEs read '{place[0]}' of layer {place[1]}: give one of them.")
        places.add(place)
        on_forget, mean_activation = _frequencies(model, sae, budget.forget)
        on_retain, _ = _frequencies(model, sae, budget.retain)
        selective = (on_retain <= hparams.max_retain_frequency) & (on_forget > on_retain)
        score = torch.where(selective, on_forget, -1.0)
        n = min(hparams.n_latents, int(selective.sum()))
        if n:
            latents = score.topk(n).indices
            chosen.append(CorpusLatents(sae, latents, mean_activation[latents]))
    if not chosen:
        raise UserError(
            f"{name}: no latent is active on the text to forget and on at most "
            f"{hparams.max_retain_frequency:.2%} of the retained tokens: train SAEs on such text "
            "too, or raise max_retain_frequency."
        )
    return chosen


@torch.inference_mode()
def _frequencies(
    model: LanguageModel, sae: SAE, examples: Sequence[Example]
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Return the share of tokens on which each latent is active, and its mean where it is."""
    key = (sae.cfg.site, sae.cfg.layer)
    # The first token has a state of its own in most models, on which SAEs are not trained.
    selections = [(e.ids, range(max(1, e.labels_start - 1), len(e.ids))) for e in examples]
    n_active, total = torch.zeros(sae.cfg.d_sae), torch.zeros(sae.cfg.d_sae)
    n_tokens = 0
    for _, batch in activation_batches(model, selections, [key], max_tokens=LARGE_BATCH_TOKENS):
        z = sae.encode(batch[key])
        n_active, total = n_active + (z > 0).sum(0), total + z.clamp_min(0).sum(0)
        n_tokens += len(z)
    return n_active / max(1, n_tokens), total / n_active.clamp_min(1)
