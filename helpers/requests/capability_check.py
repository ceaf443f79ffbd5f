"""Measures of a capability before it is removed: a model has to have it first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from scipy.stats import binomtest

from helpers.errors import UserError
from helpers.forward.prompts import Prompt
from helpers.forward.scoring import token_ranks
from helpers.io.safe_text import visible
from helpers.requests.capability import CAPABILITIES, capability
from helpers.requests.corpus import Corpus, Document
from helpers.requests.request import TextRequest
from helpers.training.examples import in_batches, label_logits, token_losses

N_TOKENS = 2048  # of each text that is measured
BATCH_SIZE = 8  # sequences in a forward pass
MIN_ORDER_GAIN = 0.15  # share of the loss on shuffled words that a known text saves at least
MAX_P = 0.05  # of a one-sided test of answers against chance


@dataclass(frozen=True)
class TextLoss:
    """The loss on a text.

    Attributes:
        per_token: Mean NLL in nats a token; tokens of another language are shorter or longer.
        per_byte: The same in nats a byte of UTF-8, which languages in one script can share.
        n_tokens: Tokens that were predicted.
    """

    per_token: float
    per_byte: float
    n_tokens: int


@torch.inference_mode()
def text_loss(model: LanguageModel, corpus: Corpus, *, n_tokens: int = N_TOKENS) -> TextLoss:
    """Measure the loss on the first tokens of a corpus.

    Raises:
        UserError: There is no text.
    """
    losses, n_bytes = [], 0
    for batch in in_batches(corpus.examples(model, n_tokens=n_tokens), BATCH_SIZE):
        losses.append(token_losses(label_logits(model, batch), batch).cpu())
        rows = [batch.label_ids[batch.label_row == row] for row in range(len(batch.ids))]
        n_bytes += sum(len(model.tokenizer.decode(row).encode()) for row in rows)
    total, n = float(torch.cat(losses).double().sum()), sum(map(len, losses))
    return TextLoss(total / n, total / max(1, n_bytes), n)


def order_gain(model: LanguageModel, corpus: Corpus, *, n_tokens: int = N_TOKENS) -> float:
    """Compute the share of the loss on shuffled words that their order saves.

    1 − loss(words in order) / loss(shuffled), in nats a token. Both texts are the same words with
    single spaces, so that neither lines nor vocabulary make a difference: about 0 for a language
    that the model never learned.

    Raises:
        UserError: There is no text.
    """
    in_order = Corpus(
        corpus.name, lambda: (Document(" ".join(d.text.split()), d.prompt) for d in corpus)
    )
    ordered = text_loss(model, in_order, n_tokens=n_tokens)
    shuffled = text_loss(model, corpus.shuffled(), n_tokens=n_tokens)
    return 1 - ordered.per_token / shuffled.per_token


def answered(model: LanguageModel, questions: Sequence[Prompt]) -> Float[np.ndarray, " n"]:
    """Return 1 for each question whose whole answer is the likeliest, token by token, else 0."""
    ranks = token_ranks(model, questions, [q.answers[0] for q in questions])
    return np.array([float((of_answer == 0).all()) for of_answer in ranks])


def chance(questions: Sequence[Prompt]) -> float:
    """Return the share of the commonest answer, which one who always gives it gets right."""
    answers = [q.answers[0] for q in questions]
    return max(map(answers.count, answers)) / len(answers)


def has_capability(model: LanguageModel, request: TextRequest) -> bool:
    """Tell whether the model has what the request is to remove.

    Questions have to be answered more often than by chance (a binomial test). Without questions,
    the order of words has to save `MIN_ORDER_GAIN` of the loss on held-out text.

    Raises:
        UserError: There is no held-out text.
    """
    if request.questions:
        right = int(answered(model, request.questions).sum())
        test = binomtest(right, len(request.questions), chance(request.questions), "greater")
        return bool(test.pvalue < MAX_P)
    return any(order_gain(model, corpus) >= MIN_ORDER_GAIN for corpus in request.heldout)


def check_capability(model: LanguageModel, request: TextRequest) -> None:
    """Refuse a capability that the model does not have.

    Args:
        model: The original model.
        request: What is to be removed.

    Raises:
        UserError: The model does not have it; the sentence names those that it has.
    """
    if has_capability(model, request):
        return
    known = [name for name in CAPABILITIES if has_capability(model, capability(name))]
    rest = f"it has {', '.join(known)}" if known else "take a larger model"
    raise UserError(
        f"The model does not have the capability '{visible(request.name)}', so there is nothing to "
        f"remove; {rest}."
    )
