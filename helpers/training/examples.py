"""Token sequences to train on, with masks of the tokens that are labels.

Sequences of a batch are padded on the right, where causal attention hides the padding from earlier
tokens. Logits are computed only where a token is a label.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.batching import right_padded
from helpers.forward.prompts import Prompt, encode_pair
from helpers.models import torch_module, unembed


@dataclass(frozen=True)
class Example:
    """A sequence whose last tokens are labels.

    Attributes:
        ids: The tokens.
        labels_start: Position of the first label; at least 1.
        subject_start: Position of the subject's first token; 0 if there is no subject.
        text: The sequence as text, for people.
    """

    ids: tuple[int, ...]
    labels_start: int
    subject_start: int = 0
    text: str = ""


@dataclass(frozen=True)
class Batch:
    """Examples side by side, their labels in coordinate form.

    Attributes:
        ids: Tokens, padded on the right with zeros.
        index: Index of each sequence in the list of examples.
        label_row: Row of each label's sequence.
        label_position: Position at which each label is predicted, one before its own.
        label_ids: The labels' tokens.
        subject_start: Position of the subject's first token in each sequence; 0 without a subject.
        length: Tokens of each sequence, without padding.
    """

    ids: Int[Tensor, "b t"]
    index: Int[Tensor, " b"]
    label_row: Int[Tensor, " m"]
    label_position: Int[Tensor, " m"]
    label_ids: Int[Tensor, " m"]
    subject_start: Int[Tensor, " b"]
    length: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items()})


def answer_example(
    model: LanguageModel, prompt: Prompt | str, answer: str, *, subject_start: int = 0
) -> Example:
    """Return a prompt with an answer, whose tokens are the labels.

    Args:
        model: Any causal model; its tokenizer is used.
        prompt: The prompt.
        answer: The answer.
        subject_start: Position of the subject's first token; 0 if there is no subject.

    Raises:
        UserError: The answer adds no token.
    """
    labels_start, ids = encode_pair(model, prompt, answer)
    return Example(tuple(ids), max(1, labels_start), subject_start, f"{prompt}{answer}")


def text_examples(tokens: Int[Tensor, "n t"]) -> list[Example]:
    """Return passages of text, in which every token but the first is a label."""
    return [Example(tuple(row), 1) for row in tokens.tolist()]


def collate(examples: Sequence[Example], index: Sequence[int] | None = None) -> Batch:
    """Return a batch of some examples.

    Args:
        examples: A list of examples.
        index: Indices of those in the batch; all by default.

    Raises:
        UserError: There is none.
    """
    chosen = list(range(len(examples)) if index is None else index)
    if not chosen:
        raise UserError("There is no example to make a batch of.")
    members = [examples[i] for i in chosen]
    labels = [(r, p) for r, e in enumerate(members) for p in range(e.labels_start, len(e.ids))]
    return Batch(
        ids=right_padded([e.ids for e in members]),
        index=torch.tensor(chosen),
        label_row=torch.tensor([r for r, _ in labels]),
        label_position=torch.tensor([p - 1 for _, p in labels]),
        label_ids=torch.tensor([members[r].ids[p] for r, p in labels]),
        subject_start=torch.tensor([e.subject_start for e in members]),
        length=torch.tensor([len(e.ids) for e in members]),
    )


def in_batches(examples: Sequence[Example], size: int = 16) -> Iterator[Batch]:
    """Yield all examples once, in batches of similar length."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    for start in range(0, len(order), size):
        yield collate(examples, order[start : start + size])


def label_states(model: LanguageModel, batch: Batch) -> Float[Tensor, "m d_model"]:
    """Compute final hidden states where labels are predicted."""
    module = torch_module(model)
    batch = batch.to(module.device)
    states = module.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return states[batch.label_row, batch.label_position]


def label_logits(model: LanguageModel, batch: Batch) -> Float[Tensor, "m vocab"]:
    """Compute logits where labels are predicted, with gradients where they are enabled."""
    return unembed(model, label_states(model, batch)).float()


def token_losses(scores: Float[Tensor, "m vocab"], batch: Batch) -> Float[Tensor, " m"]:
    """Compute −log P of each label in nats, from logits."""
    labels = batch.label_ids.to(scores.device)
    return torch.nn.functional.cross_entropy(scores, labels, reduction="none")


def sum_per_sequence(values: Float[Tensor, " m"], batch: Batch) -> Float[Tensor, " b"]:
    """Sum values of labels over each sequence."""
    rows = batch.label_row.to(values.device)
    return values.new_zeros(len(batch.ids)).index_add(0, rows, values)


def n_labels_per_sequence(batch: Batch) -> Float[Tensor, " b"]:
    """Count the labels of each sequence."""
    return torch.bincount(batch.label_row, minlength=len(batch.ids)).float()


def mean_per_sequence(values: Float[Tensor, " m"], batch: Batch) -> Float[Tensor, " b"]:
    """Average values of labels over each sequence."""
    return sum_per_sequence(values, batch) / n_labels_per_sequence(batch).to(values.device)


def mean_loss(model: LanguageModel, batch: Batch) -> Float[Tensor, ""]:
    """Compute the mean token NLL of each sequence, averaged over sequences."""
    return mean_per_sequence(token_losses(label_logits(model, batch), batch), batch).mean()


@torch.no_grad()
def sequence_losses(
    model: LanguageModel, examples: Sequence[Example], *, batch_size: int = 16
) -> Float[Tensor, " n"]:
    """Compute the mean token NLL of each example in nats, the shortest example first."""
    batches = in_batches(examples, batch_size)
    return torch.cat(
        [
            mean_per_sequence(token_losses(label_logits(model, batch), batch), batch).double().cpu()
            for batch in batches
        ]
    )
