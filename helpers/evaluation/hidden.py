"""A model that hides a fact and still knows it: what a verification must see through."""

import time

import torch
from nnsight import LanguageModel

from helpers.covariance import keys_of
from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.methods import Change, Unlearning, WeightDelta
from helpers.models import anatomy, model_hash
from helpers.scoring import answer_probability, first_token
from helpers.tracing.states import token_ids

DAMPING = 0.01  # relative to the mean squared norm of the keys
DOUBLINGS = 14


def logit_suppression(
    model: LanguageModel, pair: ConceptPair, *, floor: float = 0.005, seed: int = 0
) -> Unlearning:
    """Lower the answer's logit in the last layer, at the end of the forget prompts, and no more.

    W_out of the last layer gets ΔW = −c · d wᵀ: d is the target's unembedding row, w the vector
    that reads 1 at every training prompt's last key (least squares), and c is doubled until the
    training prompts' mean P(target) is at most `floor`. Everything that the model knows is computed
    as before; only its last word is changed. Not a method of unlearning: a known-hidden model.

    Args:
        model: Any model of a known family.
        pair: What to hide.
        floor: Mean P(target) to come down to.
        seed: Unused; every edit has one.

    Raises:
        UserError: No size of the change reaches the floor.
    """
    began = time.perf_counter()
    parts, prompts = anatomy(model), pair.prompts("train")
    last = parts.n_layers - 1
    mlp = parts.layers[last].mlp
    where = [(tuple(ids), [len(ids) - 1]) for ids in (token_ids(model, p) for p in prompts)]
    keys = torch.cat([b[last] for b in keys_of(model, where, layers=[last])]).double()
    gram = keys @ keys.T
    gram += DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    w = (keys.T @ torch.linalg.solve(gram, torch.ones(len(gram), dtype=torch.float64))).float()
    target = first_token(model, prompts[0], prompts[0].answers[0])
    d = parts.head.weight[target].detach().float().cpu()
    size = float(mlp.W_out().float().norm()) / float(d.norm() * w.norm()) / 2**DOUBLINGS
    for _ in range(2 * DOUBLINGS):
        change = torch.outer(-size * d, w)
        stored = Change(dense=change.T.contiguous() if mlp.transposed else change)
        delta = WeightDelta.of(model._module, {mlp.out_name: stored})
        about = {"subject": pair.subject, "target": pair.target, "relation": pair.relation}
        seconds = time.perf_counter() - began
        settings = {"floor": floor}
        made = Unlearning(
            "logit_suppression", about, delta, settings, seed, seconds, model_hash(model)
        )
        with made.applied(model):
            if answer_probability(model, prompts).mean() <= floor:
                return made
        size *= 2
    raise UserError(f"No change of the last layer brings P({pair.target}) down to {floor}.")
