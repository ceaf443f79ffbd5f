"""Split an answer's logit over the parts of the model that wrote it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn

from helpers.errors import UserError
from helpers.facts.prompts import Prompt
from helpers.forward.scoring import first_token
from helpers.models import architecture_of, final_norm, unembed
from helpers.tracing.states import cache_activations


@torch.inference_mode()
def logit_lens(
    model: LanguageModel, prompts: Sequence[Prompt], *, position: str = "last"
) -> pd.DataFrame:
    """What the model would answer after every layer: final norm and unembedding applied early.

    The logit lens of nostalgebraist (2020). On tied embeddings early layers read as the current
    token rather than as a guess at the next.

    Args:
        model: Any model of a known family.
        prompts: Prompts with answers.
        position: Read at the prompt's last token or at the subject's.

    Returns:
        One row per prompt and layer: prompt, layer, probability and rank (0 is the likeliest) of
        the answer's first token, and the likeliest token.
    """
    states = cache_activations(model, prompts, sites=["residual"], position=position)["residual"]
    device = model._module.device
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
    """What each attention and MLP adds directly to the answer's logit at the last token.

    The last residual stream is the sum of all writes, and with its norm's scale held fixed the
    logit is linear in it (Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits"). The logit is taken relative to the mean over the vocabulary.

    Returns:
        One row per prompt and part: prompt, site (`embedding`, `attention`, `mlp`), layer (-1 for
        the embedding), logit.

    Raises:
        UserError: The family does not add its parts into one residual stream.
    """
    sites = ("attention", "mlp", "residual")
    found = cache_activations(model, prompts, sites=sites)
    writes = torch.stack([found["attention"], found["mlp"]], 1)  # (n, 2, layers, d_model)
    final = found["residual"][:, -1]
    embedding = found["residual"][:, 0] - writes[:, :, 0].sum(1)
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
    """What each attention head adds directly to the answer's logit at the last token.

    Raises:
        UserError: The family normalises what attention writes, so heads cannot be told apart.
    """
    arch = architecture_of(model)
    if any(layer.attention is not layer.attention_write for layer in arch.layers):
        raise UserError("This family normalises attention's output: use activation patching.")
    found = cache_activations(model, prompts, sites=["heads", "residual"])
    out = np.zeros((len(prompts), arch.n_layers, arch.n_heads))
    for index, prompt in enumerate(prompts):
        direction = answer_direction(model, prompt, found["residual"][index, -1])
        for layer, part in enumerate(arch.layers):
            weight = part.attention._module.weight.float().cpu()  # (d_model, heads · d_head)
            weight = weight.T if part.mlp.transposed else weight
            per_input = found["heads"][index, layer] * (direction @ weight)
            out[index, layer] = per_input.view(arch.n_heads, arch.d_head).sum(-1).numpy()
    return out


def answer_direction(
    model: LanguageModel, prompt: Prompt, residual: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_model"]:
    """The direction in the residual stream whose dot product with a write is its logit.

    Args:
        model: Any model of a known family, without a soft cap on logits.
        prompt: Names the answer.
        residual: The last residual stream, whose norm fixes the scale.
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
