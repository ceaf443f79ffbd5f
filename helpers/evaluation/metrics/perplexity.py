"""Perplexity and KL divergence on ordinary text, before and after an edit."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.scoring import LOGIT_ROWS
from helpers.models import unembed
from helpers.stats.intervals import Metric, mean_interval

Original = Callable[[], AbstractContextManager]


@torch.inference_mode()
def losses_and_kl(
    model: LanguageModel,
    tokens: Int[Tensor, "n t"],
    before: Float[Tensor, "n t d_model"],
    after: Float[Tensor, "n t d_model"],
    original: Original,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Compute mean losses before and after and mean KL(original ‖ edited) of each sequence.

    Args:
        model: The edited model.
        tokens: Tokens of the text.
        before: Final hidden states of the original model (`final_states`).
        after: Final hidden states of the edited model.
        original: Context in which the model is the original one.

    Returns:
        (losses before, losses after, KL), in nats a token.
    """
    rows = max(1, LOGIT_ROWS // tokens.shape[1])
    parts = []
    for ids, old, new in zip(
        tokens.split(rows), before.split(rows), after.split(rows), strict=True
    ):
        targets = ids[:, 1:, None].to(old.device)
        with original():
            p = unembed(model, old[:, :-1]).float().log_softmax(-1)  # (rows, t - 1, vocab)
        q = unembed(model, new[:, :-1]).float().log_softmax(-1)
        loss = [-x.gather(-1, targets)[..., 0].mean(1) for x in (p, q)]
        kl = (p.exp() * (p - q)).sum(-1).mean(1)
        parts.append(torch.stack([*loss, kl]).double().cpu())
    return tuple(torch.cat(parts, 1).numpy())


def perplexity(losses: Float[np.ndarray, " n"]) -> Metric:
    """Compute exp of the mean loss, with the interval of the mean over sequences."""
    mean = mean_interval(losses)
    value, low, high = (float(np.exp(x)) for x in (mean.value, mean.low, mean.high))
    return Metric(value, low, high, mean.n)


def perplexity_change(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"]) -> Metric:
    """Compute perplexity after / before − 1, paired over sequences: 0 if nothing changed."""
    mean = mean_interval(after - before)
    value, low, high = (float(np.expm1(x)) for x in (mean.value, mean.low, mean.high))
    return Metric(value, low, high, mean.n)
