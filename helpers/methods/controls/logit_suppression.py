"""A model that hides a fact and still knows it: what a verification must see through."""

import time

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.forward.activations import cache_activations
from helpers.forward.batching import LARGE_BATCH_TOKENS
from helpers.forward.layer_cache import below, use_layer_cache
from helpers.forward.prompts import first_token
from helpers.forward.scoring import answer_probability
from helpers.methods import Edit, WeightEdit
from helpers.methods.snapshots import subtracted
from helpers.methods.weight_edit import low_rank_change
from helpers.models import architecture_of, model_hash

DAMPING = 0.01  # relative to the mean squared norm of the keys
DOUBLINGS, HALVINGS = 16, 3
OTHERS = 60  # answers whose unembedding rows are left alone


def logit_suppression(
    model: LanguageModel, pair: ConceptPair, *, floor: float = 0.005, seed: int = 0
) -> Edit:
    """Lower the answer's logit in the last layer, at the end of the forget prompts, and no more.

    W_out of the last layer gets ΔW = −c · d wᵀ: d is the part of the target's unembedding row that
    no other answer of the relation shares, w the vector that reads 1 at every training prompt's
    last key (least squares), and c about the least size at which the training prompts' mean
    P(target) is at most `floor`. Everything that the model knows is computed as before; only its
    last word is changed. Not a method of unlearning: a known-hidden model.

    Args:
        model: Any model of a known family.
        pair: What to hide.
        floor: Mean P(target) to come down to.
        seed: Unused; every edit has one.

    Raises:
        UserError: No size of the change reaches the floor.
    """
    began, base = time.perf_counter(), model_hash(model)
    arch, prompts = architecture_of(model), pair.prompts("train")
    last = arch.n_layers - 1
    mlp = arch.layers[last].mlp
    activations = cache_activations(
        model, prompts, sites=["neurons"], layers=[last], max_tokens=LARGE_BATCH_TOKENS
    )
    keys = activations["neurons", last].double()
    hidden = keys.float() @ mlp.W_out().detach().float().cpu().T  # what the layer writes there
    gram = keys @ keys.T
    gram += DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    w = (keys.T @ torch.linalg.solve(gram, torch.ones(len(gram), dtype=torch.float64))).float()
    d = _own_direction(model, pair)
    settings = {"floor": floor}
    about = {"subject": pair.subject, "target": pair.target, "relation": pair.relation}

    def edit(size: float) -> Edit:
        change = low_rank_change(mlp, -size * d[:, None], w[None])
        delta = WeightEdit.of(model._module, {mlp.out_name: change})
        seconds = time.perf_counter() - began
        return Edit("logit_suppression", about, delta, settings, seed, seconds, base)

    lower = below(model, [last])  # every size is tried on the same states

    def low_enough(size: float) -> bool:
        with subtracted(model, {last: torch.outer(size * d, w)}), use_layer_cache(model, lower):
            return bool(answer_probability(model, prompts).mean() <= floor)

    high = float(hidden.norm(dim=1).mean()) / 8 if hidden.norm() else 1.0
    for _ in range(DOUBLINGS):
        if low_enough(high):
            low = high / 2
            for _ in range(HALVINGS):  # no larger than it must be
                middle = (low + high) / 2
                low, high = (low, middle) if low_enough(middle) else (middle, high)
            return edit(high)
        high *= 2
    raise UserError(f"No change of the last layer brings P({pair.target}) down to {floor}.")


def _own_direction(model: LanguageModel, pair: ConceptPair) -> Float[Tensor, " d_model"]:
    """The target's unembedding row less its projection on other answers' rows, of length 1."""
    prompt = pair.prompts("train")[0]
    target = first_token(model, prompt, prompt.answers[0])
    tokens = {first_token(model, prompt, o.answers[0]) for o in pair.others(OTHERS)} - {target}
    # In float64: LAPACK's last bits depend on where in memory the numbers lie, and differ from run
    # to run; rounded to float32 they do not.
    head = architecture_of(model).head.weight.detach().cpu()
    row, rows = head[target].double(), head[sorted(tokens)][: head.shape[1] // 2].double()
    if len(rows):
        row = row - rows.T @ torch.linalg.lstsq(rows.T, row[:, None]).solution[:, 0]
    return torch.nn.functional.normalize(row, dim=0).float()
