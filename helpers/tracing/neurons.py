"""Read what single value columns of the MLPs write, by the logit lens."""

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
    """Rank the target's first token in the output of every value column of the model.

    Args:
        model: Any model of a known family.
        prompt: A prompt with the target as its answer.
        signs: Direction in which each neuron is driven; by default all are positive.

    Returns:
        For every neuron the number of tokens that its column promotes more than the target.
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
