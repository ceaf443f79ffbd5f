"""Needle: damage the one value vector that holds the concept, and nothing else."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import first_token
from helpers.forward.scoring import answer_logprobs
from helpers.methods.fitting.contrast import check_number, subject_prompts
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, final_norm


@dataclass(frozen=True)
class NeedleHparams(Hyperparameters):
    """Hyperparameters of `needle`.

    Attributes:
        noise: Standard deviation a component; the paper's 0.1.
        n_candidates: Columns that are tried.
    """

    noise: float = 0.1
    n_candidates: int = 12


@method("needle", family="surgery")
def needle(
    model: LanguageModel, pair: ConceptPair, hparams: NeedleHparams, *, seed: int = 0
) -> WeightEdit:
    """W_out[:, i] += N(0, noise²), i the concept vector (Hong et al. 2024, ConceptVectors).

    The paper finds concept vectors by what value columns say in the vocabulary and confirms them by
    the damage that noise does. Here the candidates are the columns whose readout has the target
    furthest above the other tokens, times how strongly the subject's prompts drive them at their
    last token; the one is taken whose silence costs the target most.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Draws the noise.

    Raises:
        UserError: A hyperparameter is out of range.
    """
    check_number("noise", hparams.noise, 1e-9, 1e9)
    layer, neuron = concept_vector(model, pair, n_candidates=hparams.n_candidates)
    mlp = architecture_of(model).layers[layer].mlp
    d_model, d_mlp = mlp.W_out().shape
    drawn = torch.randn(d_model, 1, generator=torch.Generator().manual_seed(seed))
    change = low_rank_change(mlp, hparams.noise * drawn, torch.eye(d_mlp)[neuron, None])
    return WeightEdit.of(model._module, {mlp.out_name: change})


def concept_vector(
    model: LanguageModel, pair: ConceptPair, *, n_candidates: int = 12
) -> tuple[int, int]:
    """(layer, neuron) of the value column that holds the target."""
    check_number("n_candidates", n_candidates, 1, 1_000_000)
    arch = architecture_of(model)
    prompts = subject_prompts(pair)
    driven = cache_activations(model, prompts, sites=["neurons"])
    score = target_scores(model, prompts[0]) * torch.stack([x.mean(0) for x in driven.values()])
    best = score.flatten().topk(min(n_candidates, score.numel())).indices.tolist()
    answers = [p.answers[0] for p in prompts]
    costs = []
    for flat in best:
        layer, neuron = divmod(flat, arch.d_mlp)
        column = arch.layers[layer].mlp.W_out()[:, neuron]
        kept = column.clone()
        try:
            with torch.no_grad():
                column.zero_()
            costs.append(float(answer_logprobs(model, prompts, answers).mean()))
        finally:
            with torch.no_grad():
                column.copy_(kept)
    return divmod(best[costs.index(min(costs))], arch.d_mlp)


@torch.inference_mode()
def target_scores(model: LanguageModel, prompt: Prompt) -> Float[Tensor, "layers d_mlp"]:
    """How far above the other tokens each value column puts the answer's first token.

    In standard deviations over the vocabulary, by the logit lens (final norm, then unembedding).
    Mean and deviation come from the unembedding's mean and covariance: no logits are computed.
    """
    arch = architecture_of(model)
    head = arch.head.weight.float()
    centred = head - head.mean(0)
    covariance = centred.T @ centred / len(head)
    answer = first_token(model, prompt, prompt.answers[0])
    scores = []
    for layer in arch.layers:
        columns = final_norm(model, layer.mlp.W_out().T.to(arch.head.weight)).float()
        spread = ((columns @ covariance) * columns).sum(-1).clamp_min(1e-12).sqrt()
        scores.append(((columns @ centred[answer]) / spread).cpu())
    return torch.stack(scores)
