"""SAE latents of a text folded into weights: their decoder directions are taken out of an MLP."""

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.methods.change import Change
from helpers.methods.fitting.corpus_latents import (
    CorpusLatents,
    CorpusLatentsHparams,
    latents_of_corpus,
)
from helpers.methods.fitting.retain_budget import Losses, RetainBudget
from helpers.methods.fitting.sae_latents import SITES
from helpers.methods.registry import method
from helpers.methods.snapshots import preserved_parameters
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, torch_module
from helpers.requests import TextRequest

STRENGTHS = np.geomspace(0.125, 8, 13)  # 1 projects the directions out; more turns them round


@method("sae_projection_text", family="surgery", takes=("text",), sae_sites=SITES)
def sae_projection_text(
    model: LanguageModel, request: TextRequest, hparams: CorpusLatentsHparams, *, seed: int = 0
) -> WeightEdit:
    """Multiply what an MLP reads or writes by 1 − s P, with P the projector onto the directions.

    The latents are those of `sae_clamp_text` (Farrell et al. 2024). A clamp acts where a latent is
    active, which no matrix can; the projection acts everywhere, and needs no SAE afterwards. An SAE
    of `mlp_in` changes the gate and W_in, W ← W (1 − s P), one of `mlp` changes W_out,
    W ← (1 − s P) W: PISCES' rewriting of value vectors (Gur-Arieh et al. 2025), for many latents,
    by directions instead of codes. The largest s that the budget allows is taken.

    Args:
        model: Any model of a known family.
        request: What to forget.
        hparams: Its hyperparameters.
        seed: Unused: nothing is random.

    Raises:
        UserError: No SAE is given, one is of another model or site, a number is out of range, no
            latent is selective, or the weakest change passes the budget.
    """
    budget, module = RetainBudget(model, request, hparams), torch_module(model)
    chosen = latents_of_corpus(model, budget, hparams, "sae_projection_text")

    def edit(strength: float) -> WeightEdit:
        changes: dict[str, Change] = {}
        for x in chosen:
            changes |= _projection(model, x, strength)
        notes = {"latents": [x.note() for x in chosen], "strength": strength}
        return WeightEdit.of(module, changes, notes=notes)

    def measure(strength: float) -> Losses:
        made = edit(strength)
        with preserved_parameters(module, made.parameter_names()):
            made.add_to(module)
            return budget.losses()

    strongest = budget.strongest(STRENGTHS.tolist(), measure)
    if strongest is None:
        raise budget.nothing_allowed("sae_projection_text")
    strength, losses = strongest
    made = edit(strength)
    made.notes.update(budget.notes(losses))
    return made


def _projection(model: LanguageModel, x: CorpusLatents, strength: float) -> dict[str, Change]:
    """Return the changes −s W P of what reads, or −s P W of what writes, by tensor."""
    mlp = architecture_of(model).layers[x.sae.cfg.layer].mlp
    directions: Float[Tensor, "f d_model"] = x.sae.W_dec.detach()[x.latents].float().cpu()
    basis = torch.linalg.qr(directions.T).Q.T  # (rank, d_model), orthonormal rows
    if x.sae.cfg.site == "mlp":
        W_out = mlp.W_out().detach().float().cpu()  # (d_model, d_mlp)
        return {mlp.out_name: low_rank_change(mlp, -strength * basis.T, basis @ W_out)}
    weights = {mlp.in_name: mlp.W_in(), mlp.gate_name: mlp.W_gate()}
    return {
        name: low_rank_change(mlp, -strength * (W.detach().float().cpu() @ basis.T), basis)
        for name, W in weights.items()
        if name and W is not None
    }
