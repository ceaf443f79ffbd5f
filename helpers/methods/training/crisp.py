"""CRISP: train the model until the concept's SAE features are no longer active."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.forward.activations import Key, trace_activations
from helpers.io.choices import check_number
from helpers.methods.fitting.sae_latents import SITES, load_saes_for, sae_states, specific_latents
from helpers.methods.training.activations import reference_activations, token_positions
from helpers.methods.training.recipe import training_method
from helpers.methods.training.task import (
    ForgetRetainBatch,
    TrainingConfig,
    UnlearningLoss,
    UnlearningTask,
)
from helpers.models import torch_module
from helpers.tracing import SITES as SITES_IN_ORDER
from helpers.training.examples import Batch


def suppression(latents: Float[Tensor, "m features"]) -> Float[Tensor, ""]:
    """Compute the mean positive part of the features, over tokens and features."""
    return latents.relu().mean()


@dataclass(frozen=True)
class CRISPHparams(TrainingConfig):
    """Hyperparameters of `crisp`.

    Attributes:
        saes: Folders of SAEs, one a layer.
        n_latents: Features a layer.
        beta: Weight of the examples to retain, between 0 and 1, 0.99 in the paper. Their errors are
            summed over the SAEs' sites; features are averaged over SAEs.
        gamma: Weight of passages (coherence) within that.
        n_comparison_subjects: Other subjects from which the features tell the subject.
    """

    lora_rank: int = 4
    parameters: str = "all"
    lr: float = 0.008
    saes: tuple[str, ...] = ()
    n_latents: int = 10
    beta: float = 0.5
    gamma: float = 0.01
    n_comparison_subjects: int = 24


@training_method("crisp", sae_sites=SITES)
def crisp(task: UnlearningTask, hparams: CRISPHparams) -> UnlearningLoss:
    """Minimise (1−β)·features on the forgotten + β·MSE on other facts + βγ·MSE on text.

    "CRISP" (Ashuach et al. 2025), by LoRA. Features are those most specific to the subject (or, at
    the site `mlp`, to the target), chosen by AUROC. They are read before the SAE's own threshold,
    so that a feature that TopK leaves out has a gradient too. The errors are those of the
    activations that the SAEs read, against the original model's, in mean squared lengths of an
    activation. The forward pass ends after the last site; all matrices up to that layer have
    factors.

    Args:
        task: What to forget.
        hparams: Its hyperparameters.

    Raises:
        UserError: No SAE is given, one is of another model or site, or beta is out of range.
    """
    check_number("beta", hparams.beta, 0, 1)
    model, data = task.model, task.data
    encoders = _encoders(task, hparams)
    keys = list(dict.fromkeys(key for key, _, _ in encoders))

    def read(batch: Batch, *, from_subject: bool) -> list[Float[Tensor, "m width"]]:
        activations = trace_activations(model, batch.ids, keys)
        positions = token_positions(batch, from_subject=from_subject)
        return [activations[key][positions].float() for key in keys]

    references = reference_activations(model, data.retain, keys)
    # Errors are relative to the mean squared length, which differs by orders between layers.
    scales = [torch.cat(x).square().sum(-1).mean() for x in zip(*references, strict=True)]

    def retain_errors(retain: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean squared errors on facts and on passages."""
        present = read(retain, from_subject=False)
        original = [torch.cat(x) for x in zip(*(references[i] for i in retain.index), strict=True)]
        n_tokens = retain.length - 1
        is_fact = torch.tensor([int(i) < len(data.facts) for i in retain.index])
        fact_mask = is_fact.repeat_interleave(n_tokens).to(present[0].device)
        errors = sum(
            (a - b).square().sum(-1) / scale
            for a, b, scale in zip(present, original, scales, strict=True)
        )
        return tuple(
            (errors * mask).sum() / mask.sum().clamp_min(1) for mask in (fact_mask, ~fact_mask)
        )

    def forget_loss(batch: ForgetRetainBatch) -> Tensor:
        states = dict(zip(keys, read(batch.forget, from_subject=True), strict=True))
        features = sum(suppression(states[key] @ W + b) for key, W, b in encoders)
        return (1 - hparams.beta) * (features / len(encoders))

    def retain_loss(batch: ForgetRetainBatch) -> Tensor | float:
        if batch.retain is None:
            return 0.0
        facts, text = retain_errors(batch.retain)
        return facts + hparams.gamma * text

    last = max(layer for _, layer in keys)
    layers = task.config.layers or range(last + 1)
    return UnlearningLoss(forget_loss, retain_loss, hparams.beta, layers=layers)


def _encoders(
    task: UnlearningTask, hparams: CRISPHparams
) -> list[tuple[Key, Float[Tensor, "width features"], Float[Tensor, " features"]]]:
    """Return each SAE's key with encoder weights and biases of its features, in model order."""
    saes = load_saes_for(task.model, hparams.saes, SITES, "crisp")
    saes.sort(key=lambda sae: (sae.cfg.layer, SITES_IN_ORDER.index(sae.cfg.site)))
    device = torch_module(task.model).device
    encoders = []
    for sae in saes:
        positives, negatives = sae_states(
            task.model, task.pair, sae, n_subjects=hparams.n_comparison_subjects, seed=task.seed
        )
        n = min(hparams.n_latents, sae.cfg.d_sae)
        latents = specific_latents(sae, positives, negatives, n=n)
        encoders.append(
            (
                (sae.cfg.site, sae.cfg.layer),
                sae.W_enc.detach()[:, latents].float().to(device),
                sae.b_enc.detach()[latents].float().to(device),
            )
        )
    return encoders
