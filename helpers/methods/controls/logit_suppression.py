"""Logit suppression: a model that hides a fact and still knows it, as a test of verification."""

import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.forward.layer_cache import cache_below, use_layer_cache
from helpers.forward.prompts import first_token
from helpers.forward.scoring import answer_probability
from helpers.methods.edit import Edit
from helpers.methods.snapshots import subtracted
from helpers.methods.weight_edit import WeightEdit, low_rank_change
from helpers.models import architecture_of, model_hash, torch_module

MAX_DOUBLINGS = 16  # of the change's size, to reach the probability
N_BISECTIONS = 3  # between the last two sizes, so that it is no larger than needed


def logit_suppression(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    target_prob: float = 0.005,
    damping: float = 0.01,
    n_other_answers: int = 60,
) -> Edit:
    """Lower the answer's logit in the last layer, at the end of the forget prompts, and no more.

    W_out of the last layer gets ΔW = −c · d wᵀ. d is the part of the target's unembedding row that
    no other answer of the relation shares. w is the least-squares vector whose product with every
    training prompt's last key is 1. c is about the least size at which the training prompts' mean
    P(target) is at most `target_prob`. All other computation stays as it was; only the last layer's
    output changes. It is not a method of unlearning but a known-hidden model, an obfuscation
    baseline.

    Args:
        model: Any model of a known family.
        pair: What to hide.
        target_prob: Mean P(target) to come down to.
        damping: Added to the keys' Gram matrix, in multiples of its mean diagonal entry.
        n_other_answers: Answers of the relation whose unembedding rows d is orthogonal to.

    Raises:
        UserError: No size of the change reaches the probability.
    """
    start_time, base = time.perf_counter(), model_hash(model)
    arch, prompts = architecture_of(model), pair.prompts("train")
    last = arch.n_layers - 1
    mlp = arch.layers[last].mlp
    activations = cache_activations(
        model, prompts, sites=["neurons"], layers=[last], max_tokens=LARGE_BATCH_TOKENS
    )
    keys = activations["neurons", last].double()  # (n, d_mlp)
    outputs = keys.float() @ mlp.W_out().detach().float().cpu().T  # (n, d_model)
    # Least squares by the keys' Gram matrix, damped since prompts may have nearly the same key.
    gram = keys @ keys.T
    gram += damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    w = (keys.T @ torch.linalg.solve(gram, torch.ones(len(gram), dtype=torch.float64))).float()
    d = _unshared_direction(model, pair, n_other_answers)
    layer_cache = cache_below(model, [last])  # every size is tried on the same states

    def is_low_enough(size: float) -> bool:
        part = {last: torch.outer(size * d, w)}
        with subtracted(model, part), use_layer_cache(model, layer_cache):
            return bool(answer_probability(model, prompts).mean() <= target_prob)

    initial_size = float(outputs.norm(dim=1).mean()) / 8 if outputs.norm() else 1.0
    size = least_size(is_low_enough, initial_size)
    if size is None:
        raise UserError(
            f"No change of the last layer brings P({pair.target}) down to {target_prob}."
        )
    change = low_rank_change(mlp, -size * d[:, None], w[None])
    hyperparameters = {
        "target_prob": target_prob,
        "damping": damping,
        "n_other_answers": n_other_answers,
    }
    return Edit(
        method="logit_suppression",
        pair={"subject": pair.subject, "target": pair.target, "relation": pair.relation},
        delta=WeightEdit.of(torch_module(model), {mlp.out_name: change}),
        hyperparameters=hyperparameters,
        seed=0,  # nothing is random
        seconds=time.perf_counter() - start_time,
        base_hash=base,
    )


def least_size(is_enough: Callable[[float], bool], initial_size: float) -> float | None:
    """Return about the least size that is enough, by doubling and bisection; None without any."""
    high = initial_size
    for _ in range(MAX_DOUBLINGS):
        if is_enough(high):
            low = high / 2
            for _ in range(N_BISECTIONS):
                middle = (low + high) / 2
                low, high = (low, middle) if is_enough(middle) else (middle, high)
            return high
        high *= 2
    return None


def _unshared_direction(
    model: LanguageModel, pair: ConceptPair, n_other_answers: int
) -> Float[Tensor, " d_model"]:
    """Return the target's unembedding row less its projection on other answers' rows, normalised.

    Args:
        model: Any model of a known family.
        pair: The fact.
        n_other_answers: Number of other answers of the relation.
    """
    prompt = pair.prompts("train")[0]
    target = first_token(model, prompt, prompt.answers[0])
    other_pairs = pair.comparison_pairs(n_other_answers)
    others = {first_token(model, prompt, o.answers[0]) for o in other_pairs} - {target}
    # In float64: LAPACK's last bits depend on where in memory the numbers lie, and differ from run
    # to run; rounded to float32 they do not.
    head = architecture_of(model).head.weight.detach().cpu()
    row, rows = head[target].double(), head[sorted(others)][: head.shape[1] // 2].double()
    if len(rows):
        row = row - rows.T @ torch.linalg.lstsq(rows.T, row[:, None]).solution[:, 0]
    return torch.nn.functional.normalize(row, dim=0).float()
