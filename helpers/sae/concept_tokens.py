"""Labelled tokens for sparse probing: tokens that name a concept, and ordinary tokens.

A concept is the name of a subject (a country), and its token is the last one of the name, in
templates and in running text. Every text is cut off there: what comes later cannot change what a
causal model represents at that token.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.corpus import passages
from helpers.forward.activations import cache_activations
from helpers.forward.prompts import Prompt, input_text, subject_span
from helpers.models.tokenization import encode, encode_with_offsets

CONTEXT_CHARACTERS = 120  # of running text before a mention: some 25 tokens
N_ORDINARY = 2  # ordinary tokens from each stretch of running text


@dataclass(frozen=True)
class ConceptTokens:
    """A dataset of n labelled tokens, in texts.

    Attributes:
        names: The concepts.
        ids: Token ids of each text.
        text_index: Index of the text of each labelled token, (n,).
        position: Position of the token in it, (n,).
        concept: Index of its concept, or -1 for an ordinary token, (n,).
        kind: `template` or `passage`, (n,).
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    text_index: np.ndarray
    position: np.ndarray
    concept: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        """Count the labelled tokens."""
        return len(self.text_index)

    def labels(self) -> Float[Tensor, "concepts n"]:
        """Compute 1 where a token is of the concept, else 0."""
        return torch.from_numpy(self.concept == np.arange(len(self.names))[:, None]).float()

    def text(self, tokenizer, index: int) -> str:
        """Decode a text up to and including its labelled token."""
        end = self.position[index] + 1
        return tokenizer.decode(list(self.ids[self.text_index[index]][:end]))


def concept_tokens(
    tokenizer,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    split: str,
    n_mentions: int = 6,
    seed: int = 0,
) -> ConceptTokens:
    """Collect tokens of concepts, and ordinary tokens beside them.

    Args:
        tokenizer: The model's.
        prompts: Concept → prompts that name it; a word is put before a name that stands first.
        split: Passages of the Factbook in which the names are searched, `train` or `heldout`.
        n_mentions: Mentions of each concept in passages, at most, drawn by `seed`; two ordinary
            tokens are drawn from the text before each.
        seed: Draws the mentions and the ordinary tokens.

    Raises:
        UserError: A prompt does not name its concept.
    """
    names = tuple(prompts)
    rng = np.random.default_rng(seed)
    ids, rows = [], []
    for concept, concept_prompts in enumerate(prompts.values()):
        for prompt in concept_prompts:
            prompt = with_leading_word(prompt, tokenizer)
            end = subject_span(prompt, tokenizer)[1]
            rows.append((len(ids), end - 1, concept, "template"))
            ids.append(tuple(encode(tokenizer, input_text(prompt, tokenizer))[:end]))
    for text, mentions in _mentions(names, split, n_mentions, rng):
        text_ids, spans = map(np.array, encode_with_offsets(tokenizer, text))
        not_empty = spans[:, 1] > spans[:, 0]
        is_named = np.zeros(len(spans), bool)
        for mentioned, start, end in mentions:
            in_name = (spans[:, 0] < end) & (spans[:, 1] > start) & not_empty
            is_named |= in_name
            if mentioned is not None:
                rows.append((len(ids), int(in_name.nonzero()[0][-1]), mentioned, "passage"))
        # The first token is an attention sink, unlike all others: it is not ordinary.
        ordinary = np.flatnonzero(~is_named & not_empty & (np.arange(len(spans)) > 0))
        for position in rng.permutation(ordinary)[:N_ORDINARY]:
            rows.append((len(ids), int(position), -1, "passage"))
        ids.append(tuple(text_ids.tolist()))
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    return ConceptTokens(names, tuple(ids), *columns)


def with_leading_word(prompt: Prompt, tokenizer) -> Prompt:
    """Put a word before a prompt whose subject would stand first.

    A sequence's first token is an attention sink (Xiao et al. 2024): its activations are unlike all
    others, and SAEs are not trained on it.
    """
    if subject_span(prompt, tokenizer)[0] > 0:
        return prompt
    return prompt.with_text(f"Fact: {prompt}")


def mention_counts(names: Sequence[str], split: str) -> dict[str, int]:
    """Count the mentions of each name in the Factbook's passages of a split."""
    counts = dict.fromkeys(names, 0)
    pattern = _pattern(names)
    for passage in passages(split):
        for match in pattern.finditer(passage.text):
            counts[match[1]] += 1
    return counts


def _pattern(names: Sequence[str]) -> re.Pattern:
    """Match any of the names as whole words, the longest that fits."""
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<![\w-])({longest_first})(?![\w-])")


def _mentions(
    names: Sequence[str], split: str, n_mentions: int, rng: np.random.Generator
) -> Iterator[tuple[str, list[tuple[int | None, int, int]]]]:
    """Draw stretches of passages that end with a mention of a concept.

    Yields:
        (text, mentions in it): of each mention the concept's index, None but for the drawn one,
        and the characters where it starts and ends.
    """
    pattern = _pattern(names)
    texts = [p.text for p in passages(split)]
    matches = [list(pattern.finditer(text)) for text in texts]
    by_name: dict[str, list[tuple[int, re.Match]]] = {name: [] for name in names}
    for i, text_matches in enumerate(matches):
        for match in text_matches:
            by_name[match[1]].append((i, match))
    for concept, name in enumerate(names):
        for k in rng.permutation(len(by_name[name]))[:n_mentions]:
            i, drawn = by_name[name][k]
            begin = max(0, drawn.start() - CONTEXT_CHARACTERS)
            if begin:  # go back to the beginning of a word
                begin = texts[i].rfind(" ", 0, begin) + 1
            mentions = [
                (
                    concept if match.start() == drawn.start() else None,
                    match.start() - begin,
                    match.end() - begin,
                )
                for match in matches[i]
                if begin <= match.start() <= drawn.start()
            ]
            yield texts[i][begin : drawn.end()], mentions


@torch.inference_mode()
def cache_token_activations(
    model: LanguageModel, tokens: ConceptTokens, *, sites: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], Float[Tensor, "n width"]]:
    """Cache activations at every labelled token; the forward pass stops after the last layer.

    Args:
        model: Any model of a known family.
        tokens: The labelled tokens.
        sites: Site → layers.

    Returns:
        (site, layer) → activations, on the CPU.

    Raises:
        UserError: There is no such site or layer, or no labelled token.
    """
    if not len(tokens):
        raise UserError("There is no token to read: give prompts that name their subject.")
    rows_of_text = [np.flatnonzero(tokens.text_index == i) for i in range(len(tokens.ids))]
    positions = [tokens.position[rows].tolist() for rows in rows_of_text]
    cache = cache_activations(model, tokens.ids, sites=sites, positions=positions)
    row_of_token = torch.from_numpy(np.concatenate(rows_of_text).argsort())
    return {key: values[row_of_token] for key, values in cache.items()}
