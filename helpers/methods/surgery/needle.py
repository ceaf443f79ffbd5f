"""Needle: add noise to the one value vector that holds the concept."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import answer_tokens
from helpers.forward.scoring import answer_probability
from helpers.io.choices import check_number
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, final_norm, torch_module


@dataclass(frozen=True)
class NeedleHparams(Hyperparameters):
    """Hyperparameters of `needle`.

    Attributes:
        noise_std: Standard deviation of the noise in each component; the paper's 0.1.
        n_candidates: Columns that are ablated, to choose one of them.
    """

    RENAMED: ClassVar = {"noise": "noise_std"}

    noise_std: float = 0.1
    n_candidates: int = 12


@method("needle", family="surgery")
def needle(
    model: LanguageModel, pair: ConceptPair, hparams: NeedleHparams, *, seed: int = 0
) -> WeightEdit:
    """Add N(0, noise_std²) to W_out[:, i], the concept vector (Hong et al. 2024, ConceptVectors).

    The paper finds concept vectors by their top logit tokens and confirms them by the damage that
    noise does. Here the candidates are the columns with the highest logit-lens score of the target,
    times their mean activation at the last token of the subject's prompts. The one is chosen whose
    ablation costs the target most.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the noise.

    Raises:
        UserError: A hyperparameter is out of range.
    """
    check_number("noise_std", hparams.noise_std, 1e-9, 1e9)
    layer, neuron = concept_vector(model, pair, n_candidates=hparams.n_candidates)
    mlp = architecture_of(model).layers[layer].mlp
    d_model, d_mlp = mlp.W_out().shape
    noise = torch.randn(d_model, 1, generator=torch.Generator().manual_seed(seed))
    change = low_rank_change(mlp, hparams.noise_std * noise, torch.eye(d_mlp)[neuron, None])
    return WeightEdit.of(torch_module(model), {mlp.out_name: change})


def concept_vector(
    model: LanguageModel, pair: ConceptPair, *, n_candidates: int = 12
) -> tuple[int, int]:
    """Return (layer, neuron) of the value column that holds the target.

    Args:
        model: Any model of a known family.
        pair: The fact.
        n_candidates: Columns that are ablated.
    """
    check_number("n_candidates", n_candidates, 1, 1_000_000)
    arch = architecture_of(model)
    prompts = subject_prompts(pair)
    activations = cache_activations(model, prompts, sites=["neurons"])
    mean_activations = torch.stack([x.mean(0) for x in activations.values()])  # (layers, d_mlp)
    score = target_scores(model, prompts[0]) * mean_activations
    candidates = score.flatten().topk(min(n_candidates, score.numel())).indices.tolist()
    logprobs = []  # of the target and its aliases, with one candidate ablated
    for flat_index in candidates:
        layer, neuron = divmod(flat_index, arch.d_mlp)
        column = arch.layers[layer].mlp.W_out()[:, neuron]
        original = column.clone()
        try:
            with torch.no_grad():
                column.zero_()
            logprobs.append(float(np.log(answer_probability(model, prompts)).mean()))
        finally:
            with torch.no_grad():
                column.copy_(original)
    return divmod(candidates[logprobs.index(min(logprobs))], arch.d_mlp)


@torch.inference_mode()
def target_scores(model: LanguageModel, prompt: Prompt) -> Float[Tensor, "layers d_mlp"]:
    """Compute each value column's logit of the answer's first token, standardised over tokens.

    Of several names the largest counts.

    The logits are those of the logit lens (final norm, then unembedding). Their mean and deviation
    come from the unembedding's mean and covariance, so that no other logits are computed.
    """
    arch = architecture_of(model)
    head = arch.head.weight.float()
    centred = head - head.mean(0)
    covariance = centred.T @ centred / len(head)
    answers = answer_tokens(model, prompt)
    scores = []
    for layer in arch.layers:
        columns = final_norm(model, layer.mlp.W_out().T.to(arch.head.weight)).float()
        std = ((columns @ covariance) * columns).sum(-1).clamp_min(1e-12).sqrt()
        scores.append(((columns @ centred[answers].T).amax(-1) / std).cpu())
    return torch.stack(scores)
