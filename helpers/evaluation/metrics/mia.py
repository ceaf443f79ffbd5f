"""Was this text in the training data? Scores that try to tell, and what they say of unlearning.

Every score is larger for what looks like a member.
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
from helpers.models import unembed
from helpers.models.parameters import trainable
from helpers.training.examples import collate, mean_loss, text_examples

K = 0.2  # share of the least likely tokens in Min-K


@dataclass(frozen=True)
class TokenStatistics:
    """What a model thinks of each token of texts of equal length.

    Attributes:
        logprob: Of the token itself, nats.
        mean: Expectation of the log-probability over the vocabulary.
        deviation: Its standard deviation over the vocabulary.
    """

    logprob: Float[np.ndarray, "n t"]
    mean: Float[np.ndarray, "n t"]
    deviation: Float[np.ndarray, "n t"]


def loss_score(logprob: Float[np.ndarray, "n t"]) -> Float[np.ndarray, " n"]:
    """−mean NLL, nats a token, at most 0. Yeom et al. 2018."""
    return np.asarray(logprob, float).mean(-1)


def zlib_score(logprob: Float[np.ndarray, "n t"], texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """−mean NLL / bytes of the compressed text: likely although it is not simple.

    Carlini et al. 2021.
    """
    size = np.array([len(zlib.compress(t.encode())) for t in texts])
    return loss_score(logprob) / size


def reference_score(
    logprob: Float[np.ndarray, "n t"], reference: Float[np.ndarray, "n t"] | None
) -> Float[np.ndarray, " n"]:
    """NLL under a reference model − NLL under this one, nats a token. Carlini et al. 2021.

    Raises:
        UserError: There is no reference model's score.
    """
    if reference is None:
        raise UserError(
            "The reference score compares with another model: score the texts with it as well."
        )
    return loss_score(logprob) - loss_score(reference)


def min_k_score(logprob: Float[np.ndarray, "n t"], *, k: float = K) -> Float[np.ndarray, " n"]:
    """Mean log-probability of the share `k` of least likely tokens, at least one.

    Shi et al. 2024, "Detecting Pretraining Data from Large Language Models".
    """
    return _lowest(np.asarray(logprob, float), k)


def min_k_plus_score(found: TokenStatistics, *, k: float = K) -> Float[np.ndarray, " n"]:
    """The same of z = (log p − E log p) / sd log p, moments over the vocabulary.

    Zhang et al. 2025, "Min-K%++". A token whose distribution has no spread has z = 0.
    """
    spread = np.where(found.deviation > 0, found.deviation, 1.0)
    z = np.where(found.deviation > 0, (found.logprob - found.mean) / spread, 0.0)
    return _lowest(z, k)


def _lowest(values: Float[np.ndarray, "n t"], k: float) -> Float[np.ndarray, " n"]:
    if not 0 < k <= 1:
        raise UserError(f"k is {k}: give a share of the tokens, above 0 and at most 1.")
    n = max(1, math.floor(k * values.shape[-1]))
    return np.sort(values, axis=-1)[..., :n].mean(-1)


def gradient_score(
    model: LanguageModel, tokens: Int[Tensor, "n t"], *, parameters: Sequence[str] | None = None
) -> Float[np.ndarray, " n"]:
    """−norm of the loss's gradient by the parameters: what was learned has little left to teach.

    Args:
        model: Any causal model.
        tokens: The texts.
        parameters: Names; all by default.
    """
    out = []
    with torch.enable_grad(), trainable(model._module, parameters) as found:
        for example in text_examples(tokens):
            loss = mean_loss(model, collate([example]))
            gradients = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
            squares = sum(float(g.float().square().sum()) for g in gradients if g is not None)
            out.append(-(squares**0.5))
    return np.array(out)


def auc(members: Float[np.ndarray, " n"], others: Float[np.ndarray, " m"]) -> float:
    """Probability that a member scores above another text, ties counting half: 0.5 is chance.

    Raises:
        UserError: One of the two is empty.
    """
    members, others = np.asarray(members, float), np.asarray(others, float)
    if not len(members) or not len(others):
        raise UserError("An AUC compares two groups: give members and others, at least one each.")
    above = (members[:, None] > others).mean()
    return float(above + 0.5 * (members[:, None] == others).mean())


def privleak(unlearned: float, retrained: float) -> float:
    """MUSE's PrivLeak = 100 · ((1 − AUC_u) − (1 − AUC_r)) / (1 − AUC_r), best at 0.

    AUC_u and AUC_r are of the forgotten texts as members, under the unlearned model and under one
    that never saw them. Negative: they still look like members (too little was forgotten);
    positive: they look less like members than unseen text does (too much). Shi et al. 2024.

    Raises:
        UserError: AUC_r is 1: the reference itself takes them all for members.
    """
    if not retrained < 1:
        raise UserError(
            "PrivLeak is not defined where the reference model's AUC is 1: its forgotten texts "
            "and the others differ in something else than membership."
        )
    return 100 * ((1 - unlearned) - (1 - retrained)) / (1 - retrained)


@torch.inference_mode()
def token_statistics(model: LanguageModel, tokens: Int[Tensor, "n t"]) -> TokenStatistics:
    """Log-probability of every token but the first, and its moments over the vocabulary."""
    states = final_states(model, tokens)[:, :-1]
    wanted = tokens[:, 1:].to(states.device)
    shape = wanted.shape
    parts = []
    for some, ids in zip(
        states.flatten(0, 1).split(LOGIT_ROWS), wanted.flatten().split(LOGIT_ROWS), strict=True
    ):
        logp = unembed(model, some).float().log_softmax(-1)
        p = logp.exp()
        mean = (p * logp).sum(-1)
        spread = ((p * logp.square()).sum(-1) - mean.square()).clamp_min(0).sqrt()
        own = logp.gather(-1, ids[:, None])[:, 0]
        parts.append(torch.stack([own, mean, spread]).double().cpu())
    own, mean, spread = torch.cat(parts, 1).view(3, *shape).numpy()
    return TokenStatistics(own, mean, spread)
