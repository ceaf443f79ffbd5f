"""Token sequences to train on, and which of their tokens count.

Sequences of a batch are padded on the right, where causal attention hides the padding from what
comes before; logits are computed only where a token counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.batching import right_padded
from helpers.forward.scoring import answer_span
from helpers.models import unembed


@dataclass(frozen=True)
class Example:
    """A sequence whose last tokens are to be predicted.

    Attributes:
        ids: The tokens.
        start: The first token that counts; at least 1.
        since: From which token on it is about its subject; 0 for text about nobody.
        text: What it says, to be read.
    """

    ids: tuple[int, ...]
    start: int
    since: int = 0
    text: str = ""


@dataclass(frozen=True)
class Batch:
    """Examples side by side.

    Attributes:
        ids: Tokens, padded on the right.
        index: Which examples these are in their list.
        row: Of each token that counts, its sequence.
        position: Where it is predicted: one before its own place.
        target: The token itself.
        since: Of each sequence, as in `Example`.
        length: Of each sequence.
    """

    ids: Int[Tensor, "b t"]
    index: Int[Tensor, " b"]
    row: Int[Tensor, " m"]
    position: Int[Tensor, " m"]
    target: Int[Tensor, " m"]
    since: Int[Tensor, " b"]
    length: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items()})


def answer_example(model: LanguageModel, prompt: str, answer: str, *, since: int = 0) -> Example:
    """A prompt with an answer, whose tokens count.

    Raises:
        UserError: The answer adds no token.
    """
    start, ids = answer_span(model, prompt, answer)
    return Example(tuple(ids), max(1, start), since, f"{prompt}{answer}")


def text_examples(tokens: Int[Tensor, "n t"], *, text: str = "") -> list[Example]:
    """Running text: every token but the first counts."""
    return [Example(tuple(row), 1, 0, text) for row in tokens.tolist()]


def collate(examples: Sequence[Example], index: Sequence[int] | None = None) -> Batch:
    """A batch of some examples of a list, of all by default.

    Raises:
        UserError: There is none.
    """
    chosen = list(range(len(examples)) if index is None else index)
    if not chosen:
        raise UserError("There is no example to make a batch of.")
    mine = [examples[i] for i in chosen]
    counted = [(r, p) for r, e in enumerate(mine) for p in range(e.start, len(e.ids))]
    return Batch(
        ids=right_padded([e.ids for e in mine]),
        index=torch.tensor(chosen),
        row=torch.tensor([r for r, _ in counted]),
        position=torch.tensor([p - 1 for _, p in counted]),
        target=torch.tensor([mine[r].ids[p] for r, p in counted]),
        since=torch.tensor([e.since for e in mine]),
        length=torch.tensor([len(e.ids) for e in mine]),
    )


def in_batches(examples: Sequence[Example], size: int = 16) -> Iterator[Batch]:
    """All examples once, in batches of like length."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    for start in range(0, len(order), size):
        yield collate(examples, order[start : start + size])


def label_logits(model: LanguageModel, batch: Batch) -> Float[Tensor, "m vocab"]:
    """Logits at the tokens that count, with gradients where they are on."""
    module = model._module
    batch = batch.to(module.device)
    states = module.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return unembed(model, states[batch.row, batch.position]).float()


def token_losses(scores: Float[Tensor, "m vocab"], batch: Batch) -> Float[Tensor, " m"]:
    """−log P of each token that counts, in nats."""
    target = batch.target.to(scores.device)
    return torch.nn.functional.cross_entropy(scores, target, reduction="none")


def sum_per_sequence(values: Float[Tensor, " m"], batch: Batch) -> Float[Tensor, " b"]:
    """Values of tokens summed over each sequence."""
    row = batch.row.to(values.device)
    return values.new_zeros(len(batch.ids)).index_add(0, row, values)


def n_labels_per_sequence(batch: Batch) -> Float[Tensor, " b"]:
    """How many tokens of each sequence count."""
    return torch.bincount(batch.row, minlength=len(batch.ids)).float()


def mean_per_sequence(values: Float[Tensor, " m"], batch: Batch) -> Float[Tensor, " b"]:
    """Values of tokens averaged over each sequence."""
    return sum_per_sequence(values, batch) / n_labels_per_sequence(batch).to(values.device)


def mean_loss(model: LanguageModel, batch: Batch) -> Float[Tensor, ""]:
    """Mean token NLL of each sequence, averaged over sequences."""
    return mean_per_sequence(token_losses(label_logits(model, batch), batch), batch).mean()
