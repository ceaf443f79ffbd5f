"""Can the answer still be read off the states by a linear map, whatever the model says?

The map is learned on other subjects' facts, from a layer's state at the last token to the answer's
unembedding row, and asked for a subject it never saw. A probe can learn anything, so beside it
stands one that was taught permuted answers (Hewitt & Liang 2019, "control tasks").
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.evaluation.eval_prompts import known_neighbours
from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import cache_activations, stack_layers
from helpers.forward.prompts import first_token
from helpers.methods import base_model
from helpers.models import architecture_of, model_hash

RIDGE = 0.1  # relative to the mean squared norm of the centred states
WAYS = 3  # statements about each subject


def rank_score(
    states: Float[Tensor, "n d"],
    answers: Float[Tensor, "n d_out"],
    asked: Float[Tensor, "m d"],
    candidates: Float[Tensor, "c d_out"],
    truth: Int[Tensor, " m"],
) -> Float[Tensor, " m"]:
    """Share of the other candidates that a ridge regression finds less fitting than the truth.

    1: the truth is first; 0.5: chance; 0: last. B = (XᵀX + λ)⁻¹ XᵀY on centred states, and a
    candidate's fit is its inner product with the prediction, both centred and normalised.

    Args:
        states: What the probe learns from.
        answers: What it should say of each.
        asked: What it is asked.
        candidates: What it may answer.
        truth: The right candidate of each.
    """
    centre, middle = states.mean(0), candidates.mean(0)
    x = (states - centre).double()
    gram = x @ x.T
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
    weights = x.T @ torch.linalg.solve(gram, (answers - middle).double())
    said = torch.nn.functional.normalize((asked - centre).double() @ weights, dim=-1)
    fit = said @ torch.nn.functional.normalize((candidates - middle).double(), dim=-1).T  # (m, c)
    right = fit.gather(1, truth[:, None])
    below = (fit < right).double().sum(1) + 0.5 * ((fit == right).double().sum(1) - 1)
    below[~fit.isfinite().all(1)] = torch.nan  # which is not below anything
    return below / (len(candidates) - 1)


def linear_probe(
    model: LanguageModel, pair: ConceptPair, *, n_subjects: int = 40, seed: int = 0
) -> pd.DataFrame:
    """`rank_score` of the target after every layer, on held-out statements, and its control.

    Args:
        model: The model with its edits; it is probed as it is.
        pair: What is asked for.
        n_subjects: Known neighbours that the probe learns from.
        seed: Draws them and the control's permutation.

    Returns:
        One row a layer and prompt: layer, prompt, score, permuted.

    Raises:
        UserError: The original knows too few neighbours to learn from.
    """
    with base_model(model):
        near = known_neighbours(model, pair, n=10_000, seed=seed)
    near = sorted(near, key=lambda k: k.subject)  # the same for every pair of a target
    near = [near[i] for i in np.random.default_rng(seed).permutation(len(near))[:n_subjects]]
    if len(near) < 4:
        raise UserError(
            f"A probe learns from at least 4 known facts of the relation; there are {len(near)}."
        )
    taught = [p for k in near for p in k.prompts("train") if p.format == "completion"]
    each = len(taught) // len(near)
    taught = [p for i, p in enumerate(taught) if i % each < WAYS]
    asked = [p for p in pair.prompts("heldout") if p.format == "completion"]
    states = _kept(model, taught), _residual(model, asked)
    both = torch.cat(states)  # (n, layers, d_model)
    ids = torch.tensor([first_token(model, p, p.answers[0]) for p in [*taught, *asked]])
    tokens, place = ids.unique(return_inverse=True)
    head = architecture_of(model).head.weight.detach().float().cpu()[tokens]
    n = len(taught)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(near)))
    step = n // len(near)
    shuffled = (order[:, None] * step + torch.arange(step)).flatten()
    rows = []
    for layer in range(both.shape[1]):
        x, y = both[:n, layer].float(), both[n:, layer].float()
        real = rank_score(x, head[place[:n]], y, head, place[n:])
        control = rank_score(x, head[place[:n]][shuffled], y, head, place[n:])
        rows += [(layer, i, float(real[i]), float(control[i])) for i in range(len(asked))]
    return pd.DataFrame(rows, columns=["layer", "prompt", "score", "permuted"])


_TAUGHT: dict[tuple, Tensor] = {}  # states of the last model and prompts that a probe learned from


def _kept(model: LanguageModel, prompts: Sequence[Prompt]) -> Float[Tensor, "n layers d_model"]:
    key = (model_hash(model), *map(str, prompts))
    if key not in _TAUGHT:
        _TAUGHT.clear()
        _TAUGHT[key] = _residual(model, prompts)
    return _TAUGHT[key]


def _residual(model: LanguageModel, prompts: Sequence[Prompt]) -> Float[Tensor, "n layers d_model"]:
    return stack_layers(cache_activations(model, prompts, sites=["residual"]), "residual")
