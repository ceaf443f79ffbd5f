"""Single keys and values: what a neuron detects, and what its column writes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.prompts import Prompt
from helpers.forward.scoring import LOGIT_ROWS, first_token
from helpers.models import architecture_of, final_norm, unembed
from helpers.tracing.states import cache_activations


def neuron_activations(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    position: str = "subject",
) -> Float[Tensor, "n layers d_mlp"]:
    """Hidden activations of the MLPs (what multiplies each value column) at one token a prompt."""
    return cache_activations(model, prompts, sites=["neurons"], layers=layers, position=position)[
        "neurons"
    ]


def selectivity(
    inside: Float[Tensor, "n *units"], outside: Float[Tensor, "m *units"]
) -> Float[Tensor, "*units"]:
    """How well each unit alone tells two groups of prompts apart: the area under the ROC curve.

    1 when the unit is always higher inside, 0 when always lower, 0.5 when it says nothing; ties
    count one half (Mann & Whitney 1947: U / (n · m)).

    Raises:
        UserError: A group is empty.
    """
    n, m = len(inside), len(outside)
    if not n or not m:
        raise UserError("Selectivity compares two groups of prompts, and one of them is empty.")
    shape = inside.shape[1:]
    values, below = outside.flatten(1).T.contiguous().sort(dim=1).values, inside.flatten(1).T
    below = below.contiguous()
    less = torch.searchsorted(values, below)  # (units, n): outside values below each inside one
    less_or_equal = torch.searchsorted(values, below, right=True)
    return ((less + less_or_equal).sum(1) / (2 * n * m)).float().view(shape)


@torch.inference_mode()
def top_logit_tokens(
    model: LanguageModel, layer: int, neurons: Sequence[int], *, k: int = 6
) -> list[dict[str, list[str]]]:
    """Tokens that value columns promote and suppress, by the logit lens.

    A column is read as if it were the residual stream: final norm, then unembedding (Geva et al.
    2022, "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
    Vocabulary Space"). A neuron with a negative activation writes the opposite.

    Args:
        model: Any model of a known family.
        layer: Which block.
        neurons: Which columns of W_out.
        k: Tokens a side.

    Returns:
        For each neuron `{"promotes": [...], "suppresses": [...]}`, strongest first.

    Raises:
        UserError: There is no such layer or neuron.
    """
    arch = architecture_of(model)
    values = arch.layers[arch.check_layer(layer)].mlp.W_out()
    neurons = [arch.check_neuron(i) for i in neurons]
    logits = unembed(model, final_norm(model, values[:, neurons].T)).float()
    logits = logits - logits.mean(-1, keepdim=True)
    decode = model.tokenizer.decode
    return [
        {
            "promotes": [decode([t]) for t in row.topk(k).indices.tolist()],
            "suppresses": [decode([t]) for t in (-row).topk(k).indices.tolist()],
        }
        for row in logits
    ]


@torch.inference_mode()
def target_ranks(
    model: LanguageModel,
    prompt: Prompt,
    *,
    signs: Float[Tensor, "layers d_mlp"] | None = None,
) -> Int[Tensor, "layers d_mlp"]:
    """Rank of the target's first token in what every value column of the model writes.

    Args:
        model: Any model of a known family.
        prompt: Names the target.
        signs: Direction in which each neuron is driven; by default all write as they are.

    Returns:
        For every neuron the number of tokens that its write promotes more than the target.
    """
    arch = architecture_of(model)
    answer = first_token(model, prompt, prompt.answers[0])
    ranks = torch.empty(arch.n_layers, arch.d_mlp, dtype=torch.long)
    for i, layer in enumerate(arch.layers):
        columns = layer.mlp.W_out().T  # (d_mlp, d_model)
        if signs is not None:
            columns = columns * signs[i, :, None].to(columns)
        for rows in torch.arange(arch.d_mlp).split(LOGIT_ROWS):
            logits = unembed(model, final_norm(model, columns[rows])).float()
            ranks[i, rows] = (logits > logits[:, answer, None]).sum(-1).cpu()
    return ranks
