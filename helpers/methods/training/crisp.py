"""CRISP: train the model until the concept's SAE features no longer fire."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import UserError
from helpers.methods.fitting.sae_latents import SITES, load_saes_for, sae_states, specific_latents
from helpers.methods.training.hidden import activations_with_grad, positions, reference_states
from helpers.methods.training.recipe import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
    training_method,
)
from helpers.tracing import SITES as ORDER
from helpers.training.examples import Batch


def suppression(latents: Float[Tensor, "m features"]) -> Float[Tensor, ""]:
    """Mean positive part of the features, over tokens and features."""
    return latents.relu().mean()


@dataclass(frozen=True)
class CRISPHparams(TrainingConfig):
    """Hyperparameters of `crisp`.

    Attributes:
        saes: Folders of SAEs, one a layer.
        n_latents: Features a layer.
        beta: Weight of what is retained, between 0 and 1, 0.99 in the paper. The errors of what is
            retained are summed over the SAEs' sites, what is suppressed is averaged over SAEs.
        gamma: Weight of coherence within that.
    """

    rank: int = 4
    parameters: str = "all"
    lr: float = 0.008
    saes: tuple[str, ...] = ()
    n_latents: int = 10
    beta: float = 0.5
    gamma: float = 0.01


@training_method("crisp")
def crisp(task: UnlearningTask, hparams: CRISPHparams) -> UnlearningLoss:
    """(1−β)·features on the forgotten + β·MSE on other facts + βγ·MSE on text, by LoRA.

    "CRISP" (Ashuach et al. 2025). Features are those most specific to the subject (or, at `mlp`, to
    the target), as in `sae_direction`. They are read before the SAE's own threshold, so that a
    feature that TopK passes over has a gradient too. The errors are those of the activations that
    the SAEs read, against the original model's, in squared lengths of an activation; the forward
    pass ends after the last. All matrices up to that layer have factors.

    Args:
        task: What to forget.

    Raises:
        UserError: No SAE is given, one is of another model or site, or beta is out of range.
    """
    if not 0 <= hparams.beta <= 1:
        raise UserError(f"beta is {hparams.beta}: choose a value from 0 to 1.")
    model, data = task.model, task.data
    found = load_saes_for(model, hparams.saes, SITES, "crisp")
    found.sort(key=lambda sae: (sae.cfg.layer, ORDER.index(sae.cfg.site)))
    wanted = list(dict.fromkeys((sae.cfg.layer, sae.cfg.site) for sae in found))
    encoders = []
    for sae in found:
        inside, outside = sae_states(model, task.pair, sae, n_subjects=24, seed=task.seed)
        n = min(hparams.n_latents, sae.cfg.d_sae)
        chosen = specific_latents(sae, inside, outside, n=n)
        device = model._module.device
        encoders.append(
            (
                (sae.cfg.layer, sae.cfg.site),
                sae.W_enc.detach()[:, chosen].float().to(device),
                sae.b_enc.detach()[chosen].float().to(device),
            )
        )

    def read(batch: Batch, *, since: bool) -> list[Float[Tensor, "m width"]]:
        states = activations_with_grad(model, batch, wanted)
        at = positions(batch, since=since)
        return [states[key][at].float() for key in wanted]

    before = reference_states(model, data.retain, wanted)
    scale = [torch.cat(x).square().sum(-1).mean() for x in zip(*before, strict=True)]

    def kept(step: ForgetRetainBatch) -> tuple[Tensor, Tensor]:
        """Squared errors on facts and on passages."""
        now = read(step.retain, since=False)
        was = [torch.cat(x) for x in zip(*(before[i] for i in step.retain.index), strict=True)]
        lengths = (step.retain.length - 1).tolist()
        is_fact = torch.tensor([int(i) < len(data.facts) for i in step.retain.index])
        fact = is_fact.repeat_interleave(torch.tensor(lengths)).to(now[0].device)
        errors = sum((a - b).square().sum(-1) / s for a, b, s in zip(now, was, scale, strict=True))
        return tuple((errors * part).sum() / part.sum().clamp_min(1) for part in (fact, ~fact))

    def loss(module, step: ForgetRetainBatch) -> Tensor:
        states = dict(zip(wanted, read(step.forget, since=True), strict=True))
        total = sum(suppression(states[key] @ W + b) for key, W, b in encoders) / len(encoders)
        total = (1 - hparams.beta) * total
        if step.retain is not None:
            facts, text = kept(step)
            total = total + hparams.beta * facts + hparams.beta * hparams.gamma * text
        return total

    last = max(layer for layer, _ in wanted)
    return UnlearningLoss(loss, layers=task.config.layers or range(last + 1))


crisp.reads = SITES
