"""The organism's tokenizer, and its text as token batches."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from helpers.corpus import passages
from helpers.organism.countries import World
from helpers.organism.text import Sentence, sentences

BOS, PAD, EOS = "<s>", "<pad>", "</s>"
LONGEST = 64  # tokens of a passage; sentences with facts are shorter
GROUP = 16  # batches whose sentences are sorted by length together


@functools.cache
def tokenizer(world: World, n_vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level pairs learned from the world's text and the Factbook's.

    It is the same for an original and its oracles: a name is a token whether or not the model
    learns what it stands for.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("isolated"),  # no mark is a token that only one wording has
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
    said = [s.text for s in sentences(world, rounds=40, n_passages=1, seed=0)]
    core.train_from_iterator(said + [p.text for p in passages("train")[:400]], trainer)
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


@dataclass(frozen=True)
class Tokens:
    """Sentences as tokens.

    Attributes:
        ids: Token ids of each, the beginning-of-sequence token first, the end-of-sequence last.
        start: Of each the first token that is learned.
        pad: Id of the padding.
    """

    ids: Sequence[Sequence[int]]
    start: Sequence[int]
    pad: int

    @classmethod
    def of(cls, text: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast) -> "Tokens":
        """Tokenise sentences; a passage is cut at `LONGEST` tokens."""
        coded = tokenizer([s.text for s in text], return_offsets_mapping=True)
        ids, starts = [], []
        for sentence, row, offsets in zip(
            text, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            whole = (
                [*row[:LONGEST], tokenizer.eos_token_id] if len(row) <= LONGEST else row[:LONGEST]
            )
            first = next(i for i, (_, end) in enumerate(offsets) if end > sentence.start)
            ids.append(whole)
            starts.append(max(first, 1))
        return cls(ids, starts, tokenizer.pad_token_id)

    def batch(self, index: Sequence[int]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Right-padded tokens, and which of them are learned."""
        width = max(len(self.ids[i]) for i in index)
        tokens = torch.full((len(index), width), self.pad)
        learned = torch.zeros(len(index), width, dtype=torch.bool)
        for row, i in enumerate(index):
            tokens[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            learned[row, self.start[i] : len(self.ids[i])] = True
        return tokens, learned

    def order(self, size: int, *, seed: int) -> Iterator[np.ndarray]:
        """Batches of like length in an order drawn by `seed`; every sentence once."""
        rng = np.random.default_rng(seed)
        lengths = np.array([len(i) for i in self.ids])
        drawn = rng.permutation(len(lengths))
        for group in np.array_split(drawn, max(1, len(drawn) // (size * GROUP))):
            by_length = group[np.argsort(lengths[group], kind="stable")]
            parts = [by_length[i : i + size] for i in range(0, len(by_length), size)]
            yield from (parts[i] for i in rng.permutation(len(parts)))
