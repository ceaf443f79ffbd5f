"""Where concepts stand in text: tokens that carry a concept, and tokens that don't.

A concept is the name of a subject (a country). It is sighted at the last token of its name, in
templates and in running text. Everything is cut off there: what comes later cannot change what a
causal model thinks at that token.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.corpus import passages
from helpers.facts.prompts import Prompt, subject_span
from helpers.forward.batching import bucket_by_length
from helpers.forward.scoring import rendered
from helpers.forward.sites import check_sites, site_value
from helpers.models import architecture_of
from helpers.models.tokenization import encode, encode_with_places

BEFORE = 120  # characters of running text before a mention: some 25 tokens
ORDINARY = 2  # other tokens taken from each stretch of running text


@dataclass(frozen=True)
class ConceptTokens:
    """Tokens to read, in stretches of text.

    Attributes:
        names: The concepts.
        ids: The tokens of each stretch.
        stretch: For each sighting, which stretch it is in, (n,).
        position: And at which token, (n,).
        concept: Which concept, or -1 for an ordinary token, (n,).
        kind: `template` or `passage`, (n,).
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    stretch: np.ndarray
    position: np.ndarray
    concept: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        """Number of sightings."""
        return len(self.stretch)

    def inside(self) -> Float[Tensor, "concepts n"]:
        """1 where a sighting is of the concept."""
        return torch.from_numpy(self.concept == np.arange(len(self.names))[:, None]).float()

    def text(self, tokenizer, index: int) -> str:
        """What stands up to and including the token."""
        end = self.position[index] + 1
        return tokenizer.decode(list(self.ids[self.stretch[index]][:end]))


def concept_tokens(
    tokenizer,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    split: str,
    n_mentions: int = 6,
    seed: int = 0,
) -> ConceptTokens:
    """Sightings of concepts, and of ordinary tokens beside them.

    Args:
        tokenizer: The model's.
        prompts: For each concept prompts about it, which name it; `with_leading_word` if need be.
        split: Which passages of the Factbook are searched for the names, `train` or `heldout`.
        n_mentions: At most so many mentions of each concept in passages, drawn by `seed`; two
            ordinary tokens are taken from the text before each.
        seed: Draws the mentions and the ordinary tokens.

    Raises:
        UserError: A prompt does not name its concept.
    """
    names = tuple(prompts)
    rng = np.random.default_rng(seed)
    ids, rows = [], []
    for concept, asked in enumerate(prompts.values()):
        for prompt in asked:
            prompt = with_leading_word(prompt, tokenizer)
            end = subject_span(prompt, tokenizer)[1]
            rows.append((len(ids), end - 1, concept, "template"))
            ids.append(tuple(encode(tokenizer, rendered(prompt, tokenizer))[:end]))
    for text, found in _mentions(names, split, n_mentions, rng):
        stretch, spans = map(np.array, encode_with_places(tokenizer, text))
        named = np.zeros(len(spans), bool)
        for concept, start, end in found:
            inside = (spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 1] > spans[:, 0])
            named |= inside
            if concept is not None:
                rows.append((len(ids), int(inside.nonzero()[0][-1]), concept, "passage"))
        free = np.flatnonzero(~named & (spans[:, 1] > spans[:, 0]) & (np.arange(len(spans)) > 0))
        for position in rng.permutation(free)[:ORDINARY]:
            rows.append((len(ids), int(position), -1, "passage"))
        ids.append(tuple(stretch.tolist()))
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    return ConceptTokens(names, tuple(ids), *columns)


def with_leading_word(prompt: Prompt, tokenizer) -> Prompt:
    """The prompt, with a word before it if its subject would stand first.

    A sequence's first token is unlike all others: attention turns to it when it has nowhere to
    look. SAEs are not trained on first tokens.
    """
    if subject_span(prompt, tokenizer)[0] > 0:
        return prompt
    return prompt.but(f"Fact: {prompt}")


def mention_counts(names: Sequence[str], split: str) -> dict[str, int]:
    """How often each name stands in the Factbook's passages of a split."""
    found = dict.fromkeys(names, 0)
    pattern = _pattern(names)
    for passage in passages(split):
        for match in pattern.finditer(passage.text):
            found[match[1]] += 1
    return found


def _pattern(names: Sequence[str]) -> re.Pattern:
    """Any of the names as whole words, the longest that fits."""
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<![\w-])({longest_first})(?![\w-])")


def _mentions(names, split: str, n_mentions: int, rng: np.random.Generator):
    """Stretches of passages that end with a drawn mention: (text, what is named where)."""
    pattern = _pattern(names)
    everywhere: dict[str, list] = {name: [] for name in names}
    texts = [p.text for p in passages(split)]
    found = [list(pattern.finditer(text)) for text in texts]
    for i, matches in enumerate(found):
        for match in matches:
            everywhere[match[1]].append((i, match))
    for concept, name in enumerate(names):
        places = everywhere[name]
        for k in rng.permutation(len(places))[:n_mentions]:
            i, match = places[k]
            begin = max(0, match.start() - BEFORE)
            begin = texts[i].rfind(" ", 0, begin) + 1 if begin else 0  # at a word's beginning
            inside = [
                (
                    concept if m.start() == match.start() else None,
                    m.start() - begin,
                    m.end() - begin,
                )
                for m in found[i]
                if begin <= m.start() <= match.start()
            ]
            yield texts[i][begin : match.end()], inside


@torch.inference_mode()
def read(
    model: LanguageModel, seen: ConceptTokens, *, sites: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], Float[Tensor, "n width"]]:
    """Activations at every sighting; the forward pass stops after the last layer needed.

    Args:
        model: Any model of a known family.
        seen: What to read.
        sites: Site → layers.

    Returns:
        (site, layer) → activations, on the CPU.

    Raises:
        UserError: There is no such site or layer, or nothing to read.
    """
    if not len(seen):
        raise UserError("There is no sighting to read: give prompts that name their subject.")
    arch = architecture_of(model)
    order = check_sites(list(sites))
    wanted = [
        (i, site)
        for i in range(arch.n_layers)
        for site in order
        if i in {arch.check_layer(layer) for layer in sites[site]}
    ]
    members = [np.flatnonzero(seen.stretch == i) for i in range(len(seen.ids))]
    out: dict[tuple[str, int], Tensor] = {}
    for batch in bucket_by_length([len(i) for i in seen.ids]):
        width = max(len(seen.ids[i]) for i in batch)
        tokens = torch.tensor([[*seen.ids[i], *[0] * (width - len(seen.ids[i]))] for i in batch])
        at = np.concatenate([members[i] for i in batch])
        rows = torch.tensor(np.repeat(np.arange(len(batch)), [len(members[i]) for i in batch]))
        columns = torch.tensor(seen.position[at])
        with model.trace(tokens) as tracer:
            kept = {}.save()
            for i, site in wanted:
                value = site_value(arch.layers[i], site, len(batch))
                kept[site, i] = value[rows, columns].float().cpu()
            tracer.stop()
        for key, values in kept.items():
            if key not in out:
                out[key] = torch.empty(len(seen), values.shape[1])
            out[key][at] = values
    return out
