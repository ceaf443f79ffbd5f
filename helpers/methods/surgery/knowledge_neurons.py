"""Knowledge neurons: zero the neurons to which an answer's probability is attributed."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import Position
from helpers.forward.batching import BATCH_TOKENS
from helpers.forward.prompts import answer_tokens, position_of, token_ids
from helpers.io.choices import check_number
from helpers.methods.fitting.contrast import subject_prompts
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, final_norm, model_hash, torch_module, unembed

_LAST_ATTRIBUTIONS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class KnowledgeNeuronsHparams(Hyperparameters):
    """Hyperparameters of `knowledge_neurons`.

    Attributes:
        n_integration_steps: Points of the integral; the paper's 20 by Riemann's sum, ours 6 by the
            midpoint rule.
        attribution_threshold: A neuron counts for a prompt above this share of the largest
            attribution; the paper's 0.2.
        sharing_threshold: A neuron is chosen when it counts for this share of the prompts; the
            paper's 0.7.
        sharing_step: The share is lowered in such steps while too few neurons are chosen; the
            paper's 0.05.
        min_neurons: The share is lowered until at least so many are chosen; the paper's 2.
        position: Where the neurons are read: the paper's `last` (BERT's mask), or `subject`, which
            forgot less on development facts.
        layers: Searched layers; all by default.
        n_prompts: Number of training completions.
    """

    RENAMED: ClassVar = {
        "steps": "n_integration_steps",
        "threshold": "attribution_threshold",
        "shared": "sharing_threshold",
    }

    n_integration_steps: int = 6
    attribution_threshold: float = 0.2
    sharing_threshold: float = 0.7
    sharing_step: float = 0.05
    min_neurons: int = 2
    position: Position = "last"
    layers: Sequence[int] | None = None
    n_prompts: int = 3


@method("knowledge_neurons", family="surgery")
def knowledge_neurons(
    model: LanguageModel, pair: ConceptPair, hparams: KnowledgeNeuronsHparams, *, seed: int = 0
) -> WeightEdit:
    """Zero W_out[:, i] of the neurons that the target's probability is attributed to (Dai 2022).

    A neuron counts for a prompt when its integrated gradient is over `attribution_threshold` times
    the largest. It is chosen when it counts for `sharing_threshold` of the prompts; where fewer
    than two are, that share is lowered as in the paper.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Unused: nothing is random.

    Raises:
        UserError: A hyperparameter is out of range.
    """
    check_number("attribution_threshold", hparams.attribution_threshold, 1e-6, 1)
    check_number("sharing_threshold", hparams.sharing_threshold, 1e-6, 1)
    check_number("sharing_step", hparams.sharing_step, 1e-3, 1)
    check_number("n_prompts", hparams.n_prompts, 1, 10_000)
    arch = architecture_of(model)
    all_layers = range(arch.n_layers)
    layers = [
        arch.check_layer(i) for i in (all_layers if hparams.layers is None else hparams.layers)
    ]
    chosen = choose_neurons(
        _attributions(model, pair, layers, hparams),
        attribution_threshold=hparams.attribution_threshold,
        sharing_threshold=hparams.sharing_threshold,
        sharing_step=hparams.sharing_step,
        min_neurons=hparams.min_neurons,
    )
    changes = {}
    for row, i in enumerate(layers):
        index = chosen[row].nonzero()[:, 0]
        if len(index):
            mlp = arch.layers[i].mlp
            one_hot = torch.eye(arch.d_mlp)[index]
            changes[mlp.out_name] = low_rank_change(mlp, -mlp.W_out()[:, index], one_hot)
    return WeightEdit.of(torch_module(model), changes)


def _attributions(
    model: LanguageModel,
    pair: ConceptPair,
    layers: Sequence[int],
    hparams: KnowledgeNeuronsHparams,
) -> Float[Tensor, "prompts layers d_mlp"]:
    """Compute the integrated gradients of each prompt; a model's last result is kept in memory.

    The control of equal size needs the same ones again.
    """
    prompts = subject_prompts(pair)[: hparams.n_prompts]
    steps, position = hparams.n_integration_steps, hparams.position
    key = (model_hash(model), *map(str, prompts), pair.answers, *layers, steps, position)
    last = _LAST_ATTRIBUTIONS.get(torch_module(model))
    if last is None or last[0] != key:
        by_prompt = [
            integrated_gradients(model, p, layers=layers, steps=steps, position=position)
            for p in prompts
        ]
        last = _LAST_ATTRIBUTIONS[torch_module(model)] = (key, torch.stack(by_prompt))
    return last[1]


def choose_neurons(
    attributions: Float[Tensor, "prompts layers d_mlp"],
    *,
    attribution_threshold: float,
    sharing_threshold: float,
    sharing_step: float = 0.05,
    min_neurons: int = 2,
) -> Bool[Tensor, "layers d_mlp"]:
    """Choose the neurons that count for enough prompts.

    Args:
        attributions: Integrated gradients.
        attribution_threshold: A neuron counts above this share of a prompt's largest attribution.
        sharing_threshold: Share of the prompts for which a chosen neuron counts.
        sharing_step: The share is lowered in such steps while too few neurons are chosen.
        min_neurons: Neurons that are enough.

    Raises:
        UserError: No attribution is positive.
    """
    largest = attributions.amax((1, 2), keepdim=True)
    if not bool((largest > 0).all()):
        raise UserError("No neuron adds to the target at this position: try another position.")
    share = (attributions > attribution_threshold * largest).float().mean(0)
    for threshold in torch.arange(sharing_threshold, 0, -sharing_step).tolist():
        is_shared = share >= threshold - 1e-6  # shares are fractions that float32 rounds
        if int(is_shared.sum()) >= min_neurons:
            return is_shared
    return share > 0


def integrated_gradients(
    model: LanguageModel,
    prompt: Prompt,
    *,
    layers: Sequence[int],
    steps: int = 20,
    position: Position = "last",
) -> Float[Tensor, "layers d_mlp"]:
    """Compute h ⊙ ∫₀¹ ∂P(α h)/∂h dα for the hidden units h of each layer at one token.

    P is the probability of the first tokens of the answer and its aliases while the layer's units
    there are scaled by α (Sundararajan et al. 2017; Dai et al. 2022, equation 4), the integral by
    the midpoint rule. By completeness a layer's attributions sum to P(h) − P(0).

    Args:
        model: Any model of a known family.
        prompt: A prompt with subject and answer.
        layers: The layers.
        steps: Points of the integral.
        position: The subject's last token or the prompt's.
    """
    check_number("steps", steps, 1, 10_000)
    arch = architecture_of(model)
    ids, at = token_ids(model, prompt), position_of(model, prompt, position)
    answers = answer_tokens(model, prompt)
    with torch.no_grad(), model.trace(torch.tensor([ids])) as tracer:
        saved = {}.save()  # type: ignore[attr-defined]
        for i in range(arch.n_layers):
            hidden = arch.layers[i].mlp.out_envoy.input
            saved["hidden", i] = hidden.view(1, len(ids), -1)[0, at].clone()
            saved["below", i + 1] = arch.layers[i].block.output.clone()
        tracer.stop()
    alpha = (torch.arange(steps) + 0.5) / steps  # midpoints
    attributions = {}
    # As many layers a pass as fit a batch: each has its own rows, so they don't affect each other.
    n_layers_a_pass = max(1, BATCH_TOKENS // (steps * len(ids)))
    order = sorted(set(layers))
    for start in range(0, len(order), n_layers_a_pass):
        chunk = order[start : start + n_layers_a_pass]
        hidden = torch.stack([saved["hidden", i] for i in chunk])  # (chunk, d_mlp)
        scaled = (alpha.to(hidden)[None, :, None] * hidden[:, None]).requires_grad_()
        n_rows = len(chunk) * steps
        with model.trace(torch.tensor([ids]).expand(n_rows, -1)) as tracer:
            for i in range(chunk[0]):
                arch.layers[i].block.skip(saved["below", chunk[0]].expand(n_rows, -1, -1).clone())
            for row, i in enumerate(chunk):
                envoy = arch.layers[i].mlp.out_envoy
                value = envoy.input.clone()  # some activations keep their output for the gradient
                by_position = value.view(n_rows, len(ids), -1)
                by_position[row * steps : (row + 1) * steps, at] = scaled[row]
                envoy.input = value
            final = arch.layers[-1].block.output[:, -1].save()
            tracer.stop()
        logits = unembed(model, final_norm(model, final)).float()
        logits.softmax(-1)[:, answers].sum().backward()
        mean_gradient = scaled.grad.mean(1)  # over the points of the integral
        for row, i in enumerate(chunk):
            attributions[i] = (hidden[row] * mean_gradient[row]).float().cpu()
    return torch.stack([attributions[i] for i in layers])
