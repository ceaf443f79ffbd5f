"""Predictions of two models on the same prompts: the answer's log-odds, and their divergence."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def log_odds(logprobs: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Compute log p / (1 − p) of each log-probability, in nats.

    Args:
        logprobs: log P of an answer after each prompt.
    """
    # 1 − p is 0 in floating point for the surest answers: p stops short of 1.
    return logprobs - np.log1p(-np.minimum(np.exp(logprobs), 1 - 1e-12))


def js_divergence(p: Float[Tensor, "n vocab"], q: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """Compute the Jensen–Shannon divergence of two distributions, row by row.

    In nats: 0 for equal distributions, ln 2 for disjoint ones (Lin 1991).

    Args:
        p: Log-probabilities.
        q: Log-probabilities.
    """
    mixture = torch.logaddexp(p, q) - np.log(2)
    halves = [(x.exp() * (x - mixture)).sum(-1) for x in (p, q)]
    # Rounding can make a divergence of equal distributions slightly negative.
    return (sum(halves) / 2).clamp_min(0)
