"""Search for a few tokens that bring the answer back when they stand before the question.

Greedy coordinate gradient (Zou et al. 2023, "Universal and Transferable Adversarial Attacks on
Aligned Language Models"): the gradient by the one-hot tokens proposes swaps, and of a sample each
that improves on what was found so far is kept. A search this small finds what lies open; it proves
nothing about a larger one. A strong enough search makes any model say anything, hence the
never-known control.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.attacks.registry import (
    AttackNotApplicableError,
    attack,
    curve,
    require_own_tokens,
)
from helpers.facts import ConceptPair
from helpers.forward.final_states import final_states
from helpers.forward.prompts import first_token, token_ids
from helpers.models import unembed

LENGTH = 6  # tokens of the trigger
N_PROMPTS = 3  # training statements that it is searched on
CANDIDATES = 16  # swaps tried in a round
TOP = 64  # tokens that the gradient proposes for each place
ROUNDS = 10


@attack("trigger", budget="search rounds", costly=True)
def trigger(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, rounds: int = ROUNDS
) -> pd.DataFrame:
    """P(first token of the target) on held-out statements after the trigger that was found."""
    require_own_tokens(model)
    train = [p for p in pair.prompts("train") if p.format == "completion"][:N_PROMPTS]
    heldout = [p for p in pair.prompts("heldout") if p.format == "completion"]
    if not train or not heldout:
        raise AttackNotApplicableError("The pair has no statements to put a trigger before.")
    generator = torch.Generator().manual_seed(seed)
    rows = [(token_ids(model, p), first_token(model, p, p.answers[0])) for p in train]
    asked = [(token_ids(model, p), first_token(model, p, p.answers[0])) for p in heldout]
    special = set(model.tokenizer.all_special_ids)
    allowed = torch.tensor([i for i in range(len(model.tokenizer)) if i not in special])
    found = allowed[torch.randint(len(allowed), (LENGTH,), generator=generator)]
    best = chances(model, found, rows).log().mean()
    curves = {0: chances(model, found, asked)}
    for step in range(1, rounds + 1):
        proposed = _proposals(model, found, rows, allowed)  # (LENGTH, TOP)
        for _ in range(CANDIDATES):
            place = int(torch.randint(LENGTH, (1,), generator=generator))
            choice = int(torch.randint(proposed.shape[1], (1,), generator=generator))
            swapped = found.clone()
            swapped[place] = proposed[place, choice]
            score = chances(model, swapped, rows).log().mean()
            if score > best:
                best, found = score, swapped
        if step in (rounds // 2, rounds):
            curves[step] = chances(model, found, asked)
    return curve({b: x.tolist() for b, x in curves.items()})


@torch.inference_mode()
def chances(
    model: LanguageModel, found: Int[Tensor, " l"], rows: Sequence[tuple[list[int], int]]
) -> Float[Tensor, " n"]:
    """P(token) after trigger and prompt, for rows of (prompt's ids, token)."""
    ids = [_joined(model, found, row) for row, _ in rows]
    width = max(len(i) for i in ids)
    tokens = torch.tensor([i + [0] * (width - len(i)) for i in ids])
    states = final_states(model, tokens)[range(len(ids)), [len(i) - 1 for i in ids]]
    p = unembed(model, states).float().softmax(-1).cpu()
    return p[range(len(ids)), [t for _, t in rows]]


def _joined(model: LanguageModel, found: Sequence[int], ids: list[int]) -> list[int]:
    """Trigger and prompt, with the beginning-of-sequence token, where there is one, first."""
    begin = 1 if ids[0] == model.tokenizer.bos_token_id else 0
    return [*ids[:begin], *(int(t) for t in found), *ids[begin:]]


def _proposals(
    model: LanguageModel,
    found: Int[Tensor, " l"],
    rows: Sequence[tuple[list[int], int]],
    allowed: Int[Tensor, " vocab"],
) -> Int[Tensor, "l top"]:
    """For each place the tokens that would raise the answer most, to first order."""
    module = model._module
    embed = module.get_input_embeddings()
    total = torch.zeros(len(found), embed.weight.shape[1])
    for ids, token in rows:
        whole = _joined(model, found, ids)
        with torch.enable_grad():
            inputs = embed(torch.tensor([whole]).to(module.device)).detach().requires_grad_()
            out = module(inputs_embeds=inputs, use_cache=False).logits[0, -1].float()
            loss = -out.log_softmax(-1)[token]
            (gradient,) = torch.autograd.grad(loss, inputs)
        begin = 1 if ids[0] == model.tokenizer.bos_token_id else 0
        total += gradient[0, begin : begin + len(found)].float().cpu()
    with torch.no_grad():
        scores = -(total @ embed.weight.float().cpu()[allowed].T)  # (l, allowed)
    return allowed[scores.topk(min(TOP, len(allowed)), dim=1).indices]
