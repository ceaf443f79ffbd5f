"""Find where in running text neurons are active, beyond the prompts that they were found with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.activations import trace_activations
from helpers.forward.batching import bucket_by_length, right_padded
from helpers.models import architecture_of, text_length
from helpers.models.tokenization import encode_with_offsets

CONTEXT = 40  # characters shown before a token


@dataclass(frozen=True)
class TextActivations:
    """Activations of a few neurons at every token of some texts.

    Attributes:
        activations: (tokens, neurons), texts one after another.
        mentions: Whether a token belongs to a mention of one of the names.
        contexts: (the token, the text before it).
    """

    activations: Float[np.ndarray, "tokens neurons"]
    mentions: Bool[np.ndarray, " tokens"]
    contexts: list[tuple[str, str]]


def text_activations(
    model: LanguageModel,
    texts: Sequence[str],
    neurons: Sequence[tuple[int, int]],
    *,
    names: Sequence[str] = (),
    max_tokens: int = 128,
) -> TextActivations:
    """Read activations of neurons on texts.

    The first token of a text is left out: it is an attention sink.

    Args:
        model: Any model of a known family.
        texts: Running text.
        neurons: (layer, neuron) pairs.
        names: Words whose tokens count as mentions, in whatever form they begin a word.
        max_tokens: Tokens read of each text.

    Raises:
        UserError: There is no such layer or neuron.
    """
    arch = architecture_of(model)
    neurons = [(arch.check_layer(layer), arch.check_neuron(i)) for layer, i in neurons]
    layers = sorted({layer for layer, _ in neurons})
    columns = {layer: torch.tensor([n for at, n in neurons if at == layer]) for layer in layers}
    limit = text_length(model, max_tokens)
    encoded = [encode_with_offsets(model.tokenizer, text) for text in texts]
    ids = [text_ids[:limit] for text_ids, _ in encoded]

    def select(value: Float[Tensor, "b t d_mlp"], layer: int) -> Tensor:
        return value[..., columns[layer]].float().cpu()

    by_text: list = [None] * len(ids)
    for batch in bucket_by_length([len(i) for i in ids]):
        keys = [("neurons", layer) for layer in layers]
        with torch.inference_mode():
            parts = trace_activations(
                model, right_padded([ids[i] for i in batch]), keys, select=select
            )
        values = torch.cat(list(parts.values()), -1)  # (b, t, neurons), sorted by layer
        for row, i in enumerate(batch):
            by_text[i] = values[row, 1 : len(ids[i])].numpy()
    by_layer = [i for layer in layers for i, (at, _) in enumerate(neurons) if at == layer]
    activations = np.concatenate(by_text)[:, np.argsort(by_layer)]
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})") if names else None
    mentions, contexts = [], []
    for text, (_, offsets) in zip(texts, encoded, strict=True):
        spans = [m.span() for m in pattern.finditer(text)] if pattern else []
        for start, end in offsets[1:limit]:
            mentions.append(any(start < b and end > a for a, b in spans))
            contexts.append((text[start:end], text[max(0, start - CONTEXT) : start]))
    return TextActivations(activations, np.array(mentions, dtype=bool), contexts)


def precision(
    text: TextActivations, thresholds: Float[np.ndarray, " neurons"]
) -> tuple[Float[np.ndarray, " neurons"], Float[np.ndarray, " neurons"]]:
    """Compute the fraction of tokens past a neuron's threshold that are mentions.

    Args:
        text: Activations and mentions, from `text_activations`.
        thresholds: One a neuron; past a negative one means below it.

    Returns:
        The precision (NaN where the neuron never passes its threshold), and the number of tokens
        past it.
    """
    past = text.activations * np.sign(thresholds) >= np.abs(thresholds)  # (tokens, neurons)
    count = past.sum(0)
    hits = (past & text.mentions[:, None]).sum(0)
    return np.where(count > 0, hits / np.maximum(count, 1), np.nan), count
