"""The strength of an edit of text: as much forgetting as a budget of retained loss allows.

Methods are compared at equal disruption. Each goes as far as it can until the loss on some kind of
retained text has risen by a given share, or until the text to forget is predicted no better than
the same words in random order. Both are measured on text that the method is not fitted on.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.forward.layer_cache import cache_below, cached_forward, use_layer_cache
from helpers.io.choices import check_number
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.registry import Hyperparameters
from helpers.models import torch_module
from helpers.requests import TextRequest
from helpers.requests.corpus import SEQ_LEN
from helpers.training.examples import Example, in_batches, label_logits, token_losses

BATCH_SIZE = 4  # sequences of a forward pass
MIN_FLOOR = 1.05  # times the loss on the text: with a floor below, word order tells nothing


@dataclass(frozen=True)
class TextHparams(Hyperparameters):
    """Hyperparameters that all closed-form methods for text have.

    Attributes:
        retain_rise: Share by which the loss on any kind of retained text may rise.
        n_tokens: Tokens to forget by, and as many to retain, of all kinds together.
        n_budget_tokens: Tokens of development text, and as many of retained text of all kinds, on
            which the strength is chosen.
    """

    retain_rise: float = 0.02
    n_tokens: int = 4096
    n_budget_tokens: int = 1024


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats a token at one strength.

    Attributes:
        forget: On development text of the kind to forget.
        retain: On retained text, by the name of its corpus.
    """

    forget: float
    retain: dict[str, float]

    def rise(self, before: "Losses") -> float:
        """Return the largest relative rise of a retained loss."""
        return max(loss / before.retain[name] - 1 for name, loss in self.retain.items())


class RetainBudget:
    """The text of a request, cut in two: one part to fit on, one to choose the strength on.

    Attributes:
        forget: Examples to forget by.
        retain: Examples to retain, of all kinds, about equally many tokens of each.
        before: Losses of the model as it is.
        floor: Its loss on the development text with the words of each document in random order;
            that of a uniform guess where their order tells nothing, as in texts of one word.
    """

    def __init__(
        self,
        model: LanguageModel,
        request: TextRequest,
        hparams: TextHparams,
        *,
        layers: Sequence[int] | None = None,
        has_floor: bool = True,
    ):
        """Cut the corpora into examples and measure the model.

        Args:
            model: The model as it is.
            request: What to forget.
            hparams: Numbers of tokens, and the budget.
            layers: The layers that will change; passes start at the lowest. All by default.
            has_floor: Stop at the floor; not for a method that abstains.

        Raises:
            UserError: A corpus has no text, there is nothing to retain, or a number is out of
                range.
        """
        check_number("retain_rise", hparams.retain_rise, 1e-6, 100)
        check_number("n_tokens", hparams.n_tokens, 2, 1e9)
        check_number("n_budget_tokens", hparams.n_budget_tokens, 2, 1e9)
        if not request.retain:
            raise UserError(
                f"The request {request} has no text to retain: give at least one corpus, or the "
                "edit has no measure of what must stay."
            )
        self.max_rise, self._model = hparams.retain_rise, model
        n_dev, n_kinds = hparams.n_budget_tokens, len(request.retain)
        self.forget = request.forget.examples(model, n_tokens=hparams.n_tokens)
        self.retain: list[Example] = []
        self._retain_dev: dict[str, list[Example]] = {}
        n_each = max(SEQ_LEN, hparams.n_tokens // n_kinds)
        n_dev_each = max(SEQ_LEN, n_dev // n_kinds)
        for corpus in request.retain:
            examples = corpus.examples(model, n_tokens=n_each + n_dev_each)
            # Of a short corpus, each part gets its share.
            n_last = max(1, round(len(examples) * n_dev_each / (n_each + n_dev_each)))
            self.retain += examples[:-n_last]
            self._retain_dev.setdefault(corpus.name, []).extend(examples[-n_last:])
        self.retain = self.retain or [e for part in self._retain_dev.values() for e in part]
        self._dev = request.dev.examples(model, n_tokens=n_dev)
        self._cache = None if layers is None else cache_below(model, layers)
        self._retain_before: dict[str, float] = {}
        self.before = self.losses()
        self._retain_before = self.before.retain
        shuffled = request.dev.shuffled().examples(model, n_tokens=n_dev)
        self.floor = mean_token_loss(model, shuffled)
        if self.floor < MIN_FLOOR * self.before.forget:
            self.floor = math.log(len(model.tokenizer))
        self._most_forgotten = self.floor if has_floor else math.inf

    def losses(self) -> Losses:
        """Measure the model as it is now, with the edits and hooks that are on it.

        A retained text beyond the budget settles that a strength is too large. The others are then
        left out, and the loss on the text to forget is infinite.
        """
        retain: dict[str, float] = {}
        with use_layer_cache(self._model, self._cache):
            for name, examples in self._retain_dev.items():
                retain[name] = mean_token_loss(self._model, examples)
                # "not <=" is also true of a loss that is no number.
                if not retain[name] <= (1 + self.max_rise) * self._retain_before.get(
                    name, math.inf
                ):
                    self._retain_dev = {name: examples, **self._retain_dev}  # next time the first
                    return Losses(math.inf, retain)
            return Losses(mean_token_loss(self._model, self._dev), retain)

    def allows(self, losses: Losses, *, part: float = 1.0) -> bool:
        """Tell whether losses are within the budget and the text is not beyond its floor.

        Args:
            losses: The losses at some strength.
            part: Part of the budget that may be used up, from 0 to 1.
        """
        # "not <=" also refuses losses that are not numbers.
        within = losses.rise(self.before) <= part * self.max_rise
        return within and losses.forget <= self._most_forgotten

    def strongest(
        self, strengths: Sequence[float], measure: Callable[[float], Losses], *, part: float = 1.0
    ) -> tuple[float, Losses] | None:
        """Find the largest strength within the budget by bisection.

        Args:
            strengths: Candidates, the weakest first.
            measure: Measures the losses at a strength.
            part: Part of the budget that may be used up, from 0 to 1.

        Returns:
            The strength and the losses there; None if the weakest is too strong already.
        """
        measured: dict[int, Losses] = {}

        def too_strong(i: int) -> bool:
            measured[i] = measure(strengths[i])
            return not self.allows(measured[i], part=part)

        n_allowed = bisect_left(range(len(strengths)), True, key=too_strong)
        return (strengths[n_allowed - 1], measured[n_allowed - 1]) if n_allowed else None

    def strongest_intervention(
        self, kind: str, strengths: Sequence[float], make: Callable[[float], HookIntervention]
    ) -> tuple[float, HookIntervention]:
        """Find the strongest intervention within the budget; its notes hold the losses.

        Args:
            kind: Its kind, for the sentence of the error.
            strengths: Candidates, the weakest first.
            make: Strength → intervention.

        Returns:
            The strength, and the intervention of that strength.

        Raises:
            UserError: The weakest is too strong already.
        """

        def measure(strength: float) -> Losses:
            remove = make(strength).hook_factory(self._model)()
            try:
                return self.losses()
            finally:
                remove()

        strongest = self.strongest(strengths, measure)
        if strongest is None:
            raise self.nothing_allowed(kind)
        strength, losses = strongest
        intervention = make(strength)
        intervention.notes.update(self.notes(losses))
        return strength, intervention

    def notes(self, after: Losses) -> dict[str, Any]:
        """Return plain data for the edit's notes: losses before and after, and the floor."""
        return {"before": asdict(self.before), "after": asdict(after), "floor": self.floor}

    def nothing_allowed(self, name: str) -> UserError:
        """Return the error of a method whose weakest change is too strong."""
        return UserError(
            f"The weakest change of {name} makes retained text worse by more than "
            f"{self.max_rise:.2%}, or the forgotten text worse than its words in random order: "
            "raise retain_rise, or choose another method."
        )


@torch.inference_mode()
def mean_token_loss(model: LanguageModel, examples: Sequence[Example]) -> float:
    """Compute the mean loss over all labels of the examples, in nats a token."""
    total, n_labels = 0.0, 0
    for batch in in_batches(examples, BATCH_SIZE):
        key = (tuple(batch.ids.shape), batch.ids.numpy().tobytes())
        with cached_forward(torch_module(model), key):
            losses = token_losses(label_logits(model, batch), batch)
        total += float(losses.double().sum())
        n_labels += len(losses)
    return total / n_labels
