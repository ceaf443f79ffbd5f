"""Tokenizer of the organism, and its text as token batches."""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from helpers.facts.corpus import passages
from helpers.organism.countries import FactSet
from helpers.organism.text import Sentence, sentences

BOS, PAD, EOS = "<s>", "<pad>", "</s>"
MAX_TOKENS = 64  # of a passage; sentences with facts are shorter
LENGTH_GROUP = 16  # batches whose sentences are sorted by length together
TOKENIZER_REPEATS, TOKENIZER_PASSAGES = 40, 400  # of the text that the tokenizer is trained on


@functools.cache
def tokenizer(fact_set: FactSet, n_vocab: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the fact set's text and the Factbook's, with names letter by letter.

    If a country's name were one token, its embedding would hold all about it: attention would fetch
    that at once, and the MLPs at the subject would have no part in any answer. Every letter occurs
    in many names; which name they spell has to be computed.

    The tokenizer is the same for an original and its oracles: it does not depend on which facts the
    model is trained on.

    Args:
        fact_set: The facts.
        n_vocab: Number of tokens.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_letter_pattern(country_names(fact_set))), "isolated"),
            # No punctuation becomes part of a token that only one template has.
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[BOS, PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [s.text for s in sentences(fact_set, n_repeats=TOKENIZER_REPEATS, n_passages=1, seed=0)]
    texts += [p.text for p in passages("train")[:TOKENIZER_PASSAGES]]
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, pad_token=PAD, eos_token=EOS, unk_token=EOS
    )


def country_names(fact_set: FactSet) -> tuple[str, ...]:
    """List the names that are tokenized letter by letter."""
    return tuple(dict.fromkeys(p.subject for p in fact_set.of_countries()))


def _letter_pattern(names: Sequence[str]) -> str:
    """Match one letter of any of the names, the first with the space before it."""
    contexts: dict[str, set[tuple[str, str]]] = {}
    for name in names:
        for i, letter in enumerate(name):
            for match in (letter,) if i else (f" {letter}", letter):
                contexts.setdefault(match, set()).add((name[: i + 1], name[i + 1 :]))
    # A letter counts only where the name's other letters stand around it, as a whole word.
    around = {
        letter: "|".join(rf"(?={after}\b)(?<!\w{upto})(?<={upto})" for upto, after in sorted(pairs))
        for letter, pairs in contexts.items()
    }
    return "|".join(f"{letter}(?:{context})" for letter, context in around.items())


@dataclass(frozen=True)
class TokenizedText:
    """Sentences as tokens.

    Attributes:
        ids: Token ids of each sentence, the beginning-of-sequence token first, the end-of-sequence
            token last.
        labels: Positions of the tokens that the model is trained to predict, of each sentence.
        pad: Id of the padding.
    """

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    pad: int

    @classmethod
    def of(cls, text: Sequence[Sentence], fact_set: FactSet, n_vocab: int) -> "TokenizedText":
        """Tokenize sentences; a passage is cut at `MAX_TOKENS` tokens.

        Labels are the tokens from a sentence's `labels_start` on, and every country's name from its
        second letter to the token after it. A model that need not predict a name gathers its
        letters only where the answer comes; one that predicts it represents the name at the name.

        Args:
            text: The sentences.
            fact_set: The facts.
            n_vocab: Number of tokens of the tokenizer.
        """
        names = re.compile(rf"\b(?:{'|'.join(country_names(fact_set))})\b")
        encoder = tokenizer(fact_set, n_vocab)
        encoded = encoder([s.text for s in text], return_offsets_mapping=True)
        all_ids, labels = [], []
        for sentence, ids, offsets in zip(
            text, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            name_spans = [m.span() for m in names.finditer(sentence.text)]
            ids = [*ids, encoder.eos_token_id] if len(ids) <= MAX_TOKENS else ids[:MAX_TOKENS]
            spans = [*offsets, (len(sentence.text), len(sentence.text) + 1)]  # with the last token
            labels.append(
                [
                    k
                    for k, (start, end) in enumerate(spans[: len(ids)])
                    if k
                    and (
                        end > sentence.labels_start
                        or any(first < start <= last for first, last in name_spans)
                    )
                ]
            )
            all_ids.append(ids)
        return cls(all_ids, labels, encoder.pad_token_id)

    def batch(
        self, index: Sequence[int] | np.ndarray
    ) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Pad sentences on the right.

        Args:
            index: Indices of sentences.

        Returns:
            (tokens, mask of the labels).
        """
        width = max(len(self.ids[i]) for i in index)
        tokens = torch.full((len(index), width), self.pad)
        is_label = torch.zeros(len(index), width, dtype=torch.bool)
        for row, i in enumerate(index):
            tokens[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            is_label[row, list(self.labels[i])] = True
        return tokens, is_label

    def order(self, size: int, *, seed: int) -> Iterator[np.ndarray]:
        """Draw batches of sentences of like length; every sentence comes once.

        Args:
            size: Sentences in a batch.
            seed: Draws the order.

        Yields:
            Indices of a batch's sentences.
        """
        rng = np.random.default_rng(seed)
        lengths = np.array([len(i) for i in self.ids])
        shuffled = rng.permutation(len(lengths))
        for group in np.array_split(shuffled, max(1, len(shuffled) // (size * LENGTH_GROUP))):
            by_length = group[np.argsort(lengths[group], kind="stable")]
            parts = [by_length[i : i + size] for i in range(0, len(by_length), size)]
            yield from (parts[i] for i in rng.permutation(len(parts)))
