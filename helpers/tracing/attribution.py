"""Split an answer's logit over the parts of the model that wrote it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.forward.activations import cache_activations, stack_layers
from helpers.forward.prompts import Prompt, first_token
from helpers.models import architecture_of, final_norm, torch_module, unembed


@torch.inference_mode()
def logit_lens(model: LanguageModel, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Read the prediction after every layer at the last token: final norm and unembedding.

    The logit lens of nostalgebraist (2020). On tied embeddings early layers read as the current
    token rather than as a guess at the next.

    Args:
        model: Any model of a known family.
        prompts: Prompts with answers.

    Returns:
        One row per prompt and layer: prompt, layer, probability and rank (0 is the most likely) of
        the answer's first token, and top (the most likely token).
    """
    states = stack_layers(cache_activations(model, prompts, sites=["residual"]), "residual")
    device = torch_module(model).device
    rows = []
    for index, (prompt, residual) in enumerate(zip(prompts, states, strict=True)):
        logits = unembed(model, final_norm(model, residual.to(device))).float()  # (layers, vocab)
        answer = first_token(model, prompt, prompt.answers[0])
        probability = logits.softmax(-1)[:, answer].cpu().numpy()
        rank = (logits > logits[:, answer, None]).sum(-1).cpu().numpy()
        top = [model.tokenizer.decode([t]) for t in logits.argmax(-1).tolist()]
        rows += [
            (index, layer, float(p), int(r), t)
            for layer, (p, r, t) in enumerate(zip(probability, rank, top, strict=True))
        ]
    return pd.DataFrame(rows, columns=["prompt", "layer", "probability", "rank", "top"])


@torch.inference_mode()
def direct_logit_attribution(model: LanguageModel, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Attribute the answer's logit at the last token to what each attention and MLP writes.

    The last residual stream is the sum of all writes, and with its norm's scale held fixed the
    logit is linear in it (Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits"). The logit is taken relative to the mean over the vocabulary.

    Args:
        model: Any model of a known family.
        prompts: Prompts with answers.

    Returns:
        One row per prompt and part: prompt, site (`embedding`, `attention`, `mlp`), layer (-1 for
        the embedding), logit.

    Raises:
        UserError: The family does not add its parts into one residual stream.
    """
    activations = cache_activations(model, prompts, sites=("attention", "mlp", "residual"))
    attention, mlp, residual = (
        stack_layers(activations, site) for site in ("attention", "mlp", "residual")
    )
    writes = torch.stack([attention, mlp], 1)  # (n, 2, layers, d_model)
    final = residual[:, -1]
    # The first block's output less its own two writes is what the embedding put in.
    embedding = residual[:, 0] - writes[:, :, 0].sum(1)
    total = embedding + writes.sum((1, 2))
    if not torch.allclose(total, final, rtol=1e-2, atol=1e-2 * float(final.abs().max())):
        raise UserError(
            "This family normalises its residual stream between blocks, so its writes do not add "
            "up to the last state; use activation patching instead."
        )
    rows = []
    for index, prompt in enumerate(prompts):
        direction = answer_direction(model, prompt, final[index])
        rows.append((index, "embedding", -1, float(embedding[index] @ direction)))
        for k, site in enumerate(("attention", "mlp")):
            logits = (writes[index, k] @ direction).tolist()
            rows += [(index, site, layer, value) for layer, value in enumerate(logits)]
    return pd.DataFrame(rows, columns=["prompt", "site", "layer", "logit"])


@torch.inference_mode()
def head_attribution(
    model: LanguageModel, prompts: Sequence[Prompt]
) -> Float[np.ndarray, "n layers heads"]:
    """Attribute the answer's logit at the last token to what each attention head writes.

    Raises:
        UserError: The family normalises what attention writes, so heads cannot be told apart.
    """
    arch = architecture_of(model)
    if any(layer.attention is not layer.attention_write for layer in arch.layers):
        raise UserError("This family normalises attention's output: use activation patching.")
    activations = cache_activations(model, prompts, sites=["heads", "residual"])
    final = activations["residual", arch.n_layers - 1]
    out = np.zeros((len(prompts), arch.n_layers, arch.n_heads))
    for index, prompt in enumerate(prompts):
        direction = answer_direction(model, prompt, final[index])
        for layer, part in enumerate(arch.layers):
            weight = part.attention._module.weight.float().cpu()  # (d_model, heads · d_head)
            weight = weight.T if part.mlp.transposed else weight
            # The write is linear in the heads' outputs, so each input's share is its own product.
            per_input = activations["heads", layer][index] * (direction @ weight)
            out[index, layer] = per_input.view(arch.n_heads, arch.d_head).sum(-1).numpy()
    return out


def answer_direction(
    model: LanguageModel, prompt: Prompt, residual: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """Return the direction whose dot product with a write is the write's logit.

    Args:
        model: Any model of a known family, without a soft cap on logits.
        prompt: A prompt with the answer.
        residual: The last residual stream, whose norm fixes the scale.

    Raises:
        UserError: The family projects its states before the unembedding.
    """
    arch = architecture_of(model)
    head = arch.head.weight.float()
    answer = first_token(model, prompt, prompt.answers[0])
    direction = (head[answer] - head.mean(0)).cpu()
    if direction.shape != residual.shape:
        raise UserError("This family projects its states before the unembedding: not supported.")
    norm = arch.norm
    scale = final_norm(model, torch.ones_like(residual).to(head.device)).float().cpu()
    if isinstance(norm, nn.LayerNorm):  # centre, divide by the deviation, weigh
        weight = norm.weight.float().cpu()
        direction = direction * weight / (residual.var(unbiased=False) + norm.eps).sqrt()
        return direction - direction.mean()
    # RMSNorm: of a vector of ones it returns its weight (Gemma's is 1 + the parameter)
    return direction * scale / residual.pow(2).mean().sqrt()
