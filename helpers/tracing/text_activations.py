"""Where in running text a neuron is active: its firings, beyond the prompts it was found with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel

from helpers.forward.batching import bucket_by_length
from helpers.forward.sites import site_value
from helpers.models import architecture_of, text_length
from helpers.models.tokenization import encode_with_places

CONTEXT = 40  # characters shown before a token


@dataclass(frozen=True)
class TextActivations:
    """Activations of a few neurons at every token of some texts.

    Attributes:
        activations: (tokens, neurons), texts one after another.
        mentions: Whether a token belongs to a mention of the names that were asked for.
        contexts: The token, and what stands before it.
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
    """Activations of neurons on texts; the forward pass stops after the last layer needed.

    The first token of a text is left out: it is a state of its own in most models.

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
    most = text_length(model, max_tokens)
    coded = [encode_with_places(model.tokenizer, t) for t in texts]
    ids = [found[:most] for found, _ in coded]
    found: list = [None] * len(ids)
    for batch in bucket_by_length([len(i) for i in ids]):
        width = max(len(ids[i]) for i in batch)
        tokens = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in batch])
        with torch.inference_mode(), model.trace(tokens) as tracer:
            kept = {}.save()
            for layer in layers:
                columns = torch.tensor([n for at, n in neurons if at == layer])
                value = site_value(arch.layers[layer], "neurons", len(batch))
                kept[layer] = value[..., columns].float().cpu()
            tracer.stop()
        whole = torch.cat([kept[layer] for layer in layers], -1)  # (b, T, neurons), by layer
        for row, i in enumerate(batch):
            found[i] = whole[row, 1 : len(ids[i])].numpy()
    order = [i for layer in layers for i, (at, _) in enumerate(neurons) if at == layer]
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})") if names else None
    mentions, contexts = [], []
    for text, (_, places) in zip(texts, coded, strict=True):
        spans = [m.span() for m in pattern.finditer(text)] if pattern else []
        for start, end in places[1:most]:
            mentions.append(any(start < b and end > a for a, b in spans))
            contexts.append((text[start:end], text[max(0, start - CONTEXT) : start]))
    activations = np.concatenate(found)[:, np.argsort(order)]
    return TextActivations(activations, np.array(mentions, dtype=bool), contexts)


def precision(
    found: TextActivations, thresholds: Float[np.ndarray, " neurons"]
) -> tuple[Float[np.ndarray, " neurons"], Float[np.ndarray, " neurons"]]:
    """Of the tokens on which a neuron is past its threshold, the share that are mentions.

    Args:
        found: From `text_activations`.
        thresholds: In the direction that counts: past a negative one means below it.

    Returns:
        The share (NaN where the neuron never fires), and the number of such tokens.
    """
    past = found.activations * np.sign(thresholds) >= np.abs(thresholds)  # (tokens, neurons)
    count = past.sum(0)
    hits = (past & found.mentions[:, None]).sum(0)
    return np.where(count > 0, hits / np.maximum(count, 1), np.nan), count
