"""The types of training methods: hyperparameters, the task, its batches, and the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair
from helpers.methods.registry import Hyperparameters
from helpers.methods.training.data import ForgetRetainData
from helpers.models import architecture_of, torch_module
from helpers.training.examples import (
    Batch,
    Example,
    in_batches,
    label_logits,
    mean_loss,
    sum_per_sequence,
    token_losses,
)

LAYERS = (5, 6, 7, 8)  # of 30: among those that enrich the subject's tokens (chapter 02)


@dataclass(frozen=True)
class TrainingConfig(Hyperparameters):
    """Hyperparameters that every training method has.

    Defaults of the learning rate, and of a method's other tuned hyperparameters, are those that the
    search of `helpers.evaluation.tuning` chose; `profiles/tuned_hyperparameters.json` is its
    record. The papers' rates are for models many times as large.

    Attributes:
        steps: Largest number of steps of AdamW.
        lr: Learning rate.
        batch_size: Examples to forget in a forward pass, and as many to retain.
        gradient_accumulation_steps: Forward passes a step, whose losses are averaged: a larger
            batch in less memory.
        parameters: `mlps`, `values`, `all`, or names of matrices (`helpers.models.parameters`).
        layers: Trained blocks; None for the method's own, at the same relative depth in any model.
        lora_rank: Rank of LoRA factors; 0 trains the matrices whole.
        early_stop_ratio: The training ends when the mean P(target) over the pair's development
            prompts is at most this share of its value before; 0 never ends it.
        early_stop_every: Steps between two measurements of that probability.
        n_neighbours: Known neighbours to retain.
        n_passages: Passages of text to retain.
        passage_tokens: Tokens of a passage.
        min_answer_prob: Facts whose answer is less likely are not retained: the model does not know
            them.
        n_text_tokens: Of a request for text, tokens to forget by, and as many to retain.
        text_tokens: Tokens of a sequence of such text.
        robust: A wrapper of `helpers.methods.training.robust` that makes the forgetting harder to
            undo: `sam`, `lat`, `ilu` or `layered`; empty for none.
        sam_rho: ρ, the length of `sam`'s step in the trained parameters. The 0.01 of the authors'
            code changes little here, where a step of training is longer; a small model, or LoRA's
            few numbers, may need less.
        lat_epsilon: ε, the largest length of `lat`'s perturbation of a token's state, in mean
            lengths of a state.
        lat_steps: Steps of gradient descent by which `lat` finds it.
        ilu_weight: λ, the weight of `ilu`'s penalty.
        layered_folds: Parts of the prompts to forget, one after another, in `layered`.
    """

    RENAMED: ClassVar = {
        "batch": "batch_size",
        "accumulate": "gradient_accumulation_steps",
        "rank": "lora_rank",
        "stop_at": "early_stop_ratio",
        "retain": "retain_weight",
        "forget": "forget_weight",
    }

    steps: int = 30
    lr: float = 4e-4
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    parameters: str = "mlps"
    layers: Sequence[int] | None = None
    lora_rank: int = 0
    early_stop_ratio: float = 0.02
    early_stop_every: int = 2
    n_neighbours: int = 24
    n_passages: int = 12
    passage_tokens: int = 24
    min_answer_prob: float = 0.02
    n_text_tokens: int = 8192
    text_tokens: int = 64
    robust: str = ""
    sam_rho: float = 0.5
    lat_epsilon: float = 0.1
    lat_steps: int = 4
    ilu_weight: float = 1.0
    layered_folds: int = 3


class ForgetRetainBatch(NamedTuple):
    """The data of one forward pass: examples to forget, and examples to retain if there are any."""

    forget: Batch
    retain: Batch | None


@dataclass(frozen=True)
class UnlearningLoss:
    """The loss that a method minimises, in two terms, with its choices for the training.

    Attributes:
        forget_loss: Batch → scalar, of what is to be forgotten. In its forward passes the rows are
            the batch's examples to forget, or sequences with the same prompts.
        retain_loss: Batch → scalar, of what must stay; None for a method that retains nothing.
        retain_weight: Weight of `retain_loss`.
        layers: The method's own choice of blocks.
        delta_scale: Factor of the trained change in the edit: −α for a task vector.
        early_stopping: Whether forgetting on development prompts may end the training.
    """

    forget_loss: Callable[[ForgetRetainBatch], Tensor]
    retain_loss: Callable[[ForgetRetainBatch], Tensor | float] | None = None
    retain_weight: float = 1.0
    layers: Sequence[int] | None = None
    delta_scale: float = 1.0
    early_stopping: bool = True

    @property
    def retains(self) -> bool:
        """Tell whether there is a term for what must stay."""
        return self.retain_loss is not None and self.retain_weight != 0

    def loss(self, batch: ForgetRetainBatch) -> Float[Tensor, ""]:
        """Compute `forget_loss` + `retain_weight` · `retain_loss`."""
        forget_loss = self.forget_loss(batch)
        if self.retain_loss is None or not self.retains:
            return forget_loss
        return forget_loss + self.retain_weight * self.retain_loss(batch)


@dataclass(frozen=True)
class UnlearningTask:
    """The input of a method.

    Attributes:
        model: The model, which is still the original when the method is called.
        pairs: The facts to forget; none if it is text.
        data: Examples to forget and to retain.
        config: The hyperparameters.
        seed: Seed of everything random.
    """

    model: LanguageModel
    pairs: tuple[ConceptPair, ...]
    data: ForgetRetainData
    config: TrainingConfig
    seed: int

    @property
    def pair(self) -> ConceptPair:
        """The one pair of a method that takes one pair at a time."""
        return self.pairs[0]

    def layers(self, default: Sequence[int]) -> list[int]:
        """Return the configured layers, or else default ones at the same relative depth.

        Args:
            default: Layers of a model of 30 layers.
        """
        arch = architecture_of(self.model)
        layers = self.config.layers or arch.relative_layers(default)
        return sorted({arch.check_layer(i) for i in layers})

    def trained_layers(self, loss: UnlearningLoss) -> Sequence[int]:
        """Return the blocks that are trained: a loss's own choice, or the configured ones."""
        return loss.layers or self.layers(LAYERS)

    def forget_loss(self, batch: ForgetRetainBatch) -> Float[Tensor, ""]:
        """Compute L_F: mean token NLL of the answers to forget."""
        return mean_loss(self.model, batch.forget)

    def retain_loss(self, batch: ForgetRetainBatch) -> Float[Tensor, ""] | float:
        """Compute L_R: mean token NLL of the examples to retain; 0 without any."""
        return mean_loss(self.model, batch.retain) if batch.retain is not None else 0.0

    @torch.no_grad()
    def reference_logits(self, examples: Sequence[Example]) -> list[Float[Tensor, "m vocab"]]:
        """Compute the original model's logits at the labels of each example."""
        by_example: list = [None] * len(examples)
        for batch in in_batches(examples):
            logits = label_logits(self.model, batch)
            for row, i in enumerate(batch.index.tolist()):
                by_example[i] = logits[(batch.label_row == row).to(logits.device)]
        return by_example

    @torch.no_grad()
    def reference_sums(self, examples: Sequence[Example]) -> Float[Tensor, " n"]:
        """Compute the original model's NLL of each example, summed over its labels."""
        by_example = torch.zeros(len(examples), device=torch_module(self.model).device)
        for batch in in_batches(examples):
            losses = token_losses(label_logits(self.model, batch), batch)
            by_example[batch.index.to(by_example.device)] = sum_per_sequence(losses, batch)
        return by_example
