"""The organism's tokenizer, and its text as token batches."""

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
LONGEST = 64  # tokens of a passage; sentences with facts are shorter
GROUP = 16  # batches whose sentences are sorted by length together


@functools.cache
def tokenizer(world: FactSet, n_vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level pairs of the world's text and the Factbook's, and names letter by letter.

    A country that is one token says all about itself in its embedding: attention fetches that at
    once, and the MLPs at the subject have no part in any answer. Letters are every name's; which
    name they make has to be worked out.

    It is the same for an original and its oracles: a name is a token whether or not the model
    learns what it stands for.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_letters(countries(world))), "isolated"),
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


def countries(world: FactSet) -> tuple[str, ...]:
    """The names that are read letter by letter."""
    return tuple(dict.fromkeys(p.subject for p in world.of_countries()))


def _letters(names: Sequence[str]) -> str:
    """A pattern of one letter of any of the names, the first with the space before it."""
    around: dict[str, set[tuple[str, str]]] = {}
    for name in names:
        for i, letter in enumerate(name):
            for here in (letter,) if i else (f" {letter}", letter):
                around.setdefault(here, set()).add((name[: i + 1], name[i + 1 :]))
    ways = {
        letter: "|".join(rf"(?={after}\b)(?<!\w{to})(?<={to})" for to, after in sorted(where))
        for letter, where in around.items()
    }
    return "|".join(f"{letter}(?:{where})" for letter, where in ways.items())


@dataclass(frozen=True)
class Tokens:
    """Sentences as tokens.

    Attributes:
        ids: Token ids of each, the beginning-of-sequence token first, the end-of-sequence last.
        learned: Of each the places of the tokens that the model learns to say.
        pad: Id of the padding.
    """

    ids: Sequence[Sequence[int]]
    learned: Sequence[Sequence[int]]
    pad: int

    @classmethod
    def of(cls, text: Sequence[Sentence], world: FactSet, n_vocab: int) -> "Tokens":
        """Tokenise sentences; a passage is cut at `LONGEST` tokens.

        Learned is what a sentence says from its `start` on, and every country's name from its
        second letter to what follows it. A model that need not spell a name gathers its letters
        only where the answer is spoken; one that spells it knows the name at the name.
        """
        names = re.compile(rf"\b(?:{'|'.join(countries(world))})\b")
        read = tokenizer(world, n_vocab)
        coded = read([s.text for s in text], return_offsets_mapping=True)
        ids, learned = [], []
        for sentence, row, offsets in zip(
            text, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            spelt = [m.span() for m in names.finditer(sentence.text)]
            whole = [*row, read.eos_token_id] if len(row) <= LONGEST else row[:LONGEST]
            places = [*offsets, (len(sentence.text), len(sentence.text) + 1)]
            said = [
                k
                for k, (a, b) in enumerate(places[: len(whole)])
                if k and (b > sentence.start or any(c < a <= d for c, d in spelt))
            ]
            ids.append(whole)
            learned.append(said)
        return cls(ids, learned, read.pad_token_id)

    def batch(self, index: Sequence[int]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Right-padded tokens, and which of them are learned."""
        width = max(len(self.ids[i]) for i in index)
        tokens = torch.full((len(index), width), self.pad)
        learned = torch.zeros(len(index), width, dtype=torch.bool)
        for row, i in enumerate(index):
            tokens[row, : len(self.ids[i])] = torch.tensor(self.ids[i])
            learned[row, list(self.learned[i])] = True
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
