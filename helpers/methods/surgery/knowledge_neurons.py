"""Knowledge neurons: find the neurons that an answer's probability is owed to, and zero them."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import Position
from helpers.forward.batching import BATCH_TOKENS
from helpers.forward.prompts import first_token, position_of, token_ids
from helpers.methods.fitting.contrast import check_number, subject_prompts
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, final_norm, model_hash, unembed

_LAST: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
FEWEST = 2  # the paper widens the net until so many neurons are found


@dataclass(frozen=True)
class KnowledgeNeuronsHparams(Hyperparameters):
    """Hyperparameters of `knowledge_neurons`.

    Attributes:
        steps: Of the integral; the paper's 20 by Riemann's sum, ours 6 by the midpoint rule.
        threshold: The paper's 0.2.
        shared: The paper's 0.7.
        position: Where the neurons are read: the paper's `last` (BERT's mask), or `subject`, which
            forgot less on development facts.
        layers: Which layers are searched; all by default.
        n_prompts: So many of the training completions.
    """

    steps: int = 6
    threshold: float = 0.2
    shared: float = 0.7
    position: Position = "last"
    layers: Sequence[int] | None = None
    n_prompts: int = 3


@method("knowledge_neurons", family="surgery")
def knowledge_neurons(
    model: LanguageModel, pair: ConceptPair, hparams: KnowledgeNeuronsHparams, *, seed: int = 0
) -> WeightEdit:
    """Zero W_out[:, i] of the neurons that the target's probability is attributed to (Dai 2022).

    A neuron counts for a prompt when its integrated gradient is over `threshold` times the largest,
    and is chosen when it counts for `shared` of the prompts; where fewer than two are, the share is
    lowered as in the paper.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        hparams: Its hyperparameters.
        seed: Not used: nothing is random.

    Raises:
        UserError: A hyperparameter is out of range.
    """
    layers = hparams.layers
    check_number("threshold", hparams.threshold, 1e-6, 1)
    check_number("shared", hparams.shared, 1e-6, 1)
    check_number("n_prompts", hparams.n_prompts, 1, 10_000)
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in (range(arch.n_layers) if layers is None else layers)]
    prompts = subject_prompts(pair)[: hparams.n_prompts]
    key = (
        model_hash(model),
        *map(str, prompts),
        pair.answers,
        *layers,
        hparams.steps,
        hparams.position,
    )
    kept = _LAST.get(model._module)
    if kept is None or kept[0] != key:  # a control of equal size asks for the same again
        found = torch.stack(
            [
                integrated_gradients(
                    model, p, layers=layers, steps=hparams.steps, position=hparams.position
                )
                for p in prompts
            ]
        )  # (prompts, layers, d_mlp)
        kept = _LAST[model._module] = (key, found)
    found = kept[1]
    chosen = choose(found, threshold=hparams.threshold, shared=hparams.shared)
    changes = {}
    for row, i in enumerate(layers):
        index = chosen[row].nonzero()[:, 0]
        if len(index):
            mlp = arch.layers[i].mlp
            changes[mlp.out_name] = low_rank_change(
                mlp, -mlp.W_out()[:, index], torch.eye(arch.d_mlp)[index]
            )
    return WeightEdit.of(model._module, changes)


def choose(
    attributions: Float[Tensor, "prompts layers d_mlp"], *, threshold: float, shared: float
) -> Tensor:
    """Which neurons (layers, d_mlp) count for enough prompts.

    Raises:
        UserError: No attribution is positive.
    """
    largest = attributions.amax((1, 2), keepdim=True)
    if not bool((largest > 0).all()):
        raise UserError("No neuron adds to the target at this position: try another position.")
    share = (attributions > threshold * largest).float().mean(0)
    for tried in torch.arange(shared, 0, -0.05).tolist():
        if int((share >= tried - 1e-6).sum()) >= FEWEST:
            return share >= tried - 1e-6
    return share > 0


def integrated_gradients(
    model: LanguageModel,
    prompt: Prompt,
    *,
    layers: Sequence[int],
    steps: int = 20,
    position: Position = "last",
) -> Float[Tensor, "layers d_mlp"]:
    """h ⊙ ∫₀¹ ∂P(α h)/∂h dα for the hidden units h of each layer at one token.

    P is the probability of the answer's first token while the layer's units there are scaled by α
    (Sundararajan et al. 2017; Dai et al. 2022, equation 4), the integral by the midpoint rule. By
    completeness a layer's attributions sum to P(h) − P(0).

    Args:
        model: Any model of a known family.
        prompt: Names subject and answer.
        layers: Which layers.
        steps: Points of the integral.
        position: At the subject's last token or at the prompt's.
    """
    check_number("steps", steps, 1, 10_000)
    arch = architecture_of(model)
    ids, at = token_ids(model, prompt), position_of(model, prompt, position)
    answer = first_token(model, prompt, prompt.answers[0])
    with torch.no_grad(), model.trace(torch.tensor([ids])) as tracer:
        kept = {}.save()
        for i in range(arch.n_layers):
            hidden = arch.layers[i].mlp.out_envoy.input
            kept["hidden", i] = hidden.view(1, len(ids), -1)[0, at].clone()
            kept["below", i + 1] = arch.layers[i].block.output.clone()
        tracer.stop()
    alpha = (torch.arange(steps) + 0.5) / steps
    out = {}
    together = max(1, BATCH_TOKENS // (steps * len(ids)))
    order = sorted(set(layers))
    for chunk in (order[i : i + together] for i in range(0, len(order), together)):
        hidden = torch.stack([kept["hidden", i] for i in chunk])  # (chunk, d_mlp)
        scaled = (alpha.to(hidden)[None, :, None] * hidden[:, None]).requires_grad_()
        n = len(chunk) * steps
        with model.trace(torch.tensor([ids]).expand(n, -1)) as tracer:
            for i in range(chunk[0]):
                arch.layers[i].block.skip(kept["below", chunk[0]].expand(n, -1, -1).clone())
            for row, i in enumerate(chunk):
                envoy = arch.layers[i].mlp.out_envoy
                value = envoy.input.clone()  # some activations keep their output for the gradient
                value.view(n, len(ids), -1)[row * steps : (row + 1) * steps, at] = scaled[row]
                envoy.input = value
            final = arch.layers[-1].block.output[:, -1].save()
            tracer.stop()
        logits = unembed(model, final_norm(model, final)).float()
        logits.softmax(-1)[:, answer].sum().backward()
        mean = scaled.grad.mean(1)  # over the points of the integral
        out |= {i: (hidden[row] * mean[row]).float().cpu() for row, i in enumerate(chunk)}
    return torch.stack([out[i] for i in layers])
