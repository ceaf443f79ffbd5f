"""Membership inference: scores of whether a text was in the training data.

Every score is larger for a text that looks like a member.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.forward.final_states import final_states
from helpers.forward.scoring import LOGIT_ROWS
from helpers.models import torch_module, unembed
from helpers.models.parameters import trainable
from helpers.training.examples import collate, mean_loss, text_examples

K = 0.2  # fraction of tokens, the least likely, in Min-K


@dataclass(frozen=True)
class TokenStatistics:
    """Log-probabilities of each token of texts of equal length, and their moments.

    Attributes:
        logprob: Log-probability of the token itself, in nats.
        mean: Expectation of the log-probability over the vocabulary.
        deviation: Standard deviation of the log-probability over the vocabulary.
    """

    logprob: Float[np.ndarray, "n t"]
    mean: Float[np.ndarray, "n t"]
    deviation: Float[np.ndarray, "n t"]


def loss_score(logprob: Float[np.ndarray, "n t"]) -> Float[np.ndarray, " n"]:
    """Compute −mean NLL, in nats a token, at most 0 (Yeom et al. 2018)."""
    return np.asarray(logprob, float).mean(-1)


def zlib_score(logprob: Float[np.ndarray, "n t"], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Compute −mean NLL / bytes of the compressed text (Carlini et al. 2021).

    A text that is likely although it is not simple looks like a member.
    """
    size = np.array([len(zlib.compress(t.encode())) for t in texts])
    return loss_score(logprob) / size


def min_k_score(logprob: Float[np.ndarray, "n t"], *, k: float = K) -> Float[np.ndarray, " n"]:
    """Average the log-probability over the fraction `k` of least likely tokens, at least one.

    Shi et al. 2024, "Detecting Pretraining Data from Large Language Models".
    """
    return _lowest(np.asarray(logprob, float), k)


def min_k_plus_score(statistics: TokenStatistics, *, k: float = K) -> Float[np.ndarray, " n"]:
    """Average z = (log p − E log p) / sd log p over the fraction `k` of tokens with the least z.

    Zhang et al. 2025, "Min-K%++". A token whose distribution has no spread has z = 0.
    """
    has_spread = statistics.deviation > 0
    deviation = np.where(has_spread, statistics.deviation, 1.0)
    z = np.where(has_spread, (statistics.logprob - statistics.mean) / deviation, 0.0)
    return _lowest(z, k)


def _lowest(values: Float[np.ndarray, "n t"], k: float) -> Float[np.ndarray, " n"]:
    if not 0 < k <= 1:
        raise UserError(f"k is {k}: give a share of the tokens, above 0 and at most 1.")
    n = max(1, math.floor(k * values.shape[-1]))
    return np.sort(values, axis=-1)[..., :n].mean(-1)


def gradient_score(
    model: LanguageModel, tokens: Int[Tensor, "n t"], *, parameters: Sequence[str] | None = None
) -> Float[np.ndarray, " n"]:
    """Compute −norm of the loss's gradient by the parameters: it is small for a learned text.

    Args:
        model: Any causal model.
        tokens: Tokens of the texts.
        parameters: Names of the parameters; all by default.
    """
    scores = []
    with torch.enable_grad(), trainable(torch_module(model), parameters) as tensors:
        for example in text_examples(tokens):
            loss = mean_loss(model, collate([example]))
            gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
            squares = sum(float(g.float().square().sum()) for g in gradients if g is not None)
            scores.append(-(squares**0.5))
    return np.array(scores)


@torch.inference_mode()
def token_statistics(model: LanguageModel, tokens: Int[Tensor, "n t"]) -> TokenStatistics:
    """Compute the log-probability of every token but the first, and moments over the vocabulary."""
    states = final_states(model, tokens)[:, :-1]
    targets = tokens[:, 1:].to(states.device)
    shape = targets.shape
    parts = []
    for rows, ids in zip(
        states.flatten(0, 1).split(LOGIT_ROWS), targets.flatten().split(LOGIT_ROWS), strict=True
    ):
        logp = unembed(model, rows).float().log_softmax(-1)
        p = logp.exp()
        mean = (p * logp).sum(-1)
        deviation = ((p * logp.square()).sum(-1) - mean.square()).clamp_min(0).sqrt()
        token_logp = logp.gather(-1, ids[:, None])[:, 0]
        parts.append(torch.stack([token_logp, mean, deviation]).double().cpu())
    token_logp, mean, deviation = torch.cat(parts, 1).view(3, *shape).numpy()
    return TokenStatistics(token_logp, mean, deviation)
