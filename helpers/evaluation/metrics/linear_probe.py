"""Linear probe: do the activations still represent the answer, whatever the model predicts?

The probe is trained on other subjects' facts. It maps a layer's activation at the last token to the
answer's unembedding row, and is tested on a subject that it was not trained on. A probe can learn
anything, so it is compared with one trained on permuted answers (Hewitt & Liang 2019, "control
tasks").
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
from helpers.forward.activations import Position, cache_activations, stack_layers
from helpers.forward.prompts import first_token
from helpers.methods import base_model
from helpers.models import architecture_of, model_hash

RIDGE = 0.1  # relative to the mean squared norm of the centred activations
N_STATEMENTS = 3  # about each subject


def rank_score(
    train_inputs: Float[Tensor, "n d"],
    train_outputs: Float[Tensor, "n d_out"],
    test_inputs: Float[Tensor, "m d"],
    candidates: Float[Tensor, "c d_out"],
    truth: Int[Tensor, " m"],
) -> Float[Tensor, " m"]:
    """Rank the true candidate by the fit of a ridge regression's prediction.

    The score is the fraction of the other candidates that fit less: 1 is first, 0.5 chance, 0 last.
    B = (XᵀX + λ)⁻¹ XᵀY on centred inputs. A candidate's fit is its inner product with the
    prediction, both centred and normalised.

    Args:
        train_inputs: Activations that the probe is trained on.
        train_outputs: The unembedding row of each one's answer.
        test_inputs: Activations that it is tested on.
        candidates: Unembedding rows among which the truth is ranked.
        truth: Index of the true candidate of each test input.
    """
    input_mean, output_mean = train_inputs.mean(0), candidates.mean(0)
    x = (train_inputs - input_mean).double()
    # Fewer examples than dimensions: the dual form solves an (n, n) system instead of (d, d).
    gram = x @ x.T
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
    weights = x.T @ torch.linalg.solve(gram, (train_outputs - output_mean).double())
    predicted = (test_inputs - input_mean).double() @ weights
    predicted = torch.nn.functional.normalize(predicted, dim=-1)
    centred = (candidates - output_mean).double()
    fit = predicted @ torch.nn.functional.normalize(centred, dim=-1).T  # (m, c)
    true_fit = fit.gather(1, truth[:, None])
    # Ties count half; the truth ties with itself.
    below = (fit < true_fit).double().sum(1) + 0.5 * ((fit == true_fit).double().sum(1) - 1)
    below[~fit.isfinite().all(1)] = torch.nan  # a comparison with NaN would count as below
    return below / (len(candidates) - 1)


def linear_probe(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    position: Position = "last",
    n_subjects: int = 40,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute `rank_score` of the target after every layer, on held-out statements.

    Args:
        model: The model with its edits.
        pair: The fact whose target is ranked.
        position: The token that is read: the statement's last one, or the subject's.
        n_subjects: Known neighbours that the probe is trained on.
        seed: Draws the neighbours, and the permutation of the control probe.

    Returns:
        One row a layer and prompt: layer, prompt, score, permuted (the control probe's score).

    Raises:
        UserError: The original knows too few neighbours to train on.
    """
    with base_model(model):
        neighbours = known_neighbours(model, pair, n=10_000, seed=seed)
    # Sorted, the neighbours that are drawn are the same for every pair with the same target.
    neighbours = sorted(neighbours, key=lambda k: k.subject)
    order = np.random.default_rng(seed).permutation(len(neighbours))[:n_subjects]
    neighbours = [neighbours[i] for i in order]
    if len(neighbours) < 4:
        raise UserError(
            "A probe learns from at least 4 known facts of the relation; there are "
            f"{len(neighbours)}."
        )
    train = [p for k in neighbours for p in k.statements("train")]
    n_each = len(train) // len(neighbours)
    train = [p for i, p in enumerate(train) if i % n_each < N_STATEMENTS]
    test = pair.statements("heldout")
    activations = torch.cat(
        [_train_activations(model, train, position), _residual(model, test, position)]
    )
    ids = torch.tensor([first_token(model, p, p.answers[0]) for p in [*train, *test]])
    tokens, answer = ids.unique(return_inverse=True)
    head = architecture_of(model).head.weight.detach().float().cpu()[tokens]
    n = len(train)
    outputs, truth = head[answer[:n]], answer[n:]
    # The control permutes answers among subjects; a subject's statements keep the same answer.
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(neighbours)))
    n_each = n // len(neighbours)
    shuffled = (order[:, None] * n_each + torch.arange(n_each)).flatten()
    rows = []
    for layer in range(activations.shape[1]):
        x, y = activations[:n, layer].float(), activations[n:, layer].float()
        scores = rank_score(x, outputs, y, head, truth)
        permuted = rank_score(x, outputs[shuffled], y, head, truth)
        rows += [(layer, i, float(scores[i]), float(permuted[i])) for i in range(len(test))]
    return pd.DataFrame(rows, columns=["layer", "prompt", "score", "permuted"])


_LAST_ACTIVATIONS: dict[tuple, Tensor] = {}  # of the last model and training prompts


def _train_activations(
    model: LanguageModel, prompts: Sequence[Prompt], position: Position
) -> Float[Tensor, "n layers d_model"]:
    """Compute the activations on training prompts, or return those of the last call."""
    key = (model_hash(model), position, *map(str, prompts))
    if key not in _LAST_ACTIVATIONS:
        _LAST_ACTIVATIONS.clear()
        _LAST_ACTIVATIONS[key] = _residual(model, prompts, position)
    return _LAST_ACTIVATIONS[key]


def _residual(
    model: LanguageModel, prompts: Sequence[Prompt], position: Position
) -> Float[Tensor, "n layers d_model"]:
    activations = cache_activations(model, prompts, sites=["residual"], positions=position)
    return stack_layers(activations, "residual")
