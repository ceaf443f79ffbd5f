"""Read value columns of the MLPs, and other directions, by the logit lens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.prompts import Prompt, first_token
from helpers.forward.scoring import LOGIT_ROWS
from helpers.models import architecture_of, final_norm, unembed


@torch.inference_mode()
def top_logit_tokens(
    model: LanguageModel, layer: int, neurons: Sequence[int], *, k: int = 6
) -> list[dict[str, list[str]]]:
    """List the tokens that value columns promote and suppress.

    A column is read as if it were the residual stream: final norm, then unembedding (Geva et al.
    2022, "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
    Vocabulary Space"). A neuron with a negative activation writes the opposite.

    Args:
        model: Any model of a known family.
        layer: Index of the block.
        neurons: Columns of W_out.
        k: Tokens on each side.

    Returns:
        For each neuron `{"promotes": [...], "suppresses": [...]}`, strongest first.

    Raises:
        UserError: There is no such layer or neuron.
    """
    arch = architecture_of(model)
    values = arch.layers[arch.check_layer(layer)].mlp.W_out()
    neurons = [arch.check_neuron(i) for i in neurons]
    return direction_logit_tokens(model, values[:, neurons].T, k=k)


@torch.inference_mode()
def direction_logit_tokens(
    model: LanguageModel, directions: Float[Tensor, "n d_model"], *, k: int = 8
) -> list[dict[str, list[str]]]:
    """List the tokens that directions of the residual stream promote and suppress.

    Args:
        model: Any model of a known family.
        directions: Directions of the residual stream, read by final norm and unembedding.
        k: Tokens on each side.

    Returns:
        For each direction `{"promotes": [...], "suppresses": [...]}`, strongest first.
    """
    logits = _logits(model, directions)
    decode = model.tokenizer.decode
    return [
        {
            "promotes": [decode([t]) for t in row.topk(k).indices.tolist()],
            "suppresses": [decode([t]) for t in (-row).topk(k).indices.tolist()],
        }
        for row in logits
    ]


@torch.inference_mode()
def direction_target_ranks(
    model: LanguageModel, prompt: Prompt, directions: Float[Tensor, "n d_model"]
) -> Int[Tensor, " n"]:
    """Rank the target's first token among those that each direction promotes.

    Args:
        model: Any model of a known family.
        prompt: A prompt with the target as its answer.
        directions: Directions of the residual stream, read by final norm and unembedding.

    Returns:
        For every direction the number of tokens that it promotes more than the target.
    """
    logits = _logits(model, directions)
    answer = first_token(model, prompt, prompt.answers[0])
    return (logits > logits[:, answer, None]).sum(-1).cpu()


def _logits(
    model: LanguageModel, directions: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n vocab"]:
    head = architecture_of(model).head.weight
    return unembed(model, final_norm(model, directions.to(head.device, head.dtype))).float()


@torch.inference_mode()
def target_ranks(
    model: LanguageModel,
    prompt: Prompt,
    layer: int,
    neurons: Sequence[int],
    *,
    signs: Float[Tensor, " n"] | None = None,
) -> Int[Tensor, " n"]:
    """Rank the target's first token in the output of value columns.

    Args:
        model: Any model of a known family.
        prompt: A prompt with the target as its answer.
        layer: Index of the block.
        neurons: Columns of W_out.
        signs: Direction in which each is driven; by default all are positive.

    Returns:
        For every neuron the number of tokens that its column promotes more than the target.

    Raises:
        UserError: There is no such layer or neuron.
    """
    arch = architecture_of(model)
    columns = arch.layers[arch.check_layer(layer)].mlp.W_out()
    columns = columns[:, [arch.check_neuron(i) for i in neurons]].T  # (n, d_model)
    if signs is not None:
        columns = columns * signs[:, None].to(columns)
    ranks = [direction_target_ranks(model, prompt, rows) for rows in columns.split(LOGIT_ROWS)]
    return torch.cat(ranks)
