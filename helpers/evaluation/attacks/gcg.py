"""Search for a few tokens that bring the answer back when they stand before the prompt.

Greedy coordinate gradient (Zou et al. 2023, "Universal and Transferable Adversarial Attacks on
Aligned Language Models"): the gradient by the one-hot tokens proposes swaps, and the best of a few
sampled swaps is accepted if it improves on the trigger. A search this small finds what lies open;
it proves nothing about a larger one. A strong enough search makes any model give any answer, so
control facts are attacked in the same way.
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
    require_own_tokens,
    score_table,
)
from helpers.facts import ConceptPair
from helpers.forward.batching import right_padded
from helpers.forward.final_states import final_states
from helpers.forward.prompts import first_token, token_ids
from helpers.models import torch_module, unembed

LENGTH = 6  # tokens of the trigger
N_PROMPTS = 3  # training statements that it is optimised on
N_SWAPS = 16  # swaps tried in a round
SWAPS_PER_BATCH = 8  # swaps of the same trigger that are scored in one pass
TOP_K = 64  # tokens that the gradient proposes for each position
ROUNDS = 10


@attack("gcg", budget="search rounds", expensive=True)
def gcg(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, rounds: int = ROUNDS
) -> pd.DataFrame:
    """Score the target's first token on held-out statements behind the trigger."""
    require_own_tokens(model)
    train = pair.statements("train")[:N_PROMPTS]
    heldout = pair.statements("heldout")
    if not train or not heldout:
        raise AttackNotApplicableError("The pair has no statements to put a trigger before.")
    generator = torch.Generator().manual_seed(seed)
    train_rows = [(token_ids(model, p), first_token(model, p, p.answers[0])) for p in train]
    test_rows = [(token_ids(model, p), first_token(model, p, p.answers[0])) for p in heldout]
    special = set(model.tokenizer.all_special_ids)
    allowed = torch.tensor([i for i in range(len(model.tokenizer)) if i not in special])
    trigger = allowed[torch.randint(len(allowed), (LENGTH,), generator=generator)]
    best_score = target_probability(model, trigger[None], train_rows).log().mean()
    scores = {0: target_probability(model, trigger[None], test_rows)[0]}
    for step in range(1, rounds + 1):
        proposals = _proposals(model, trigger, train_rows, allowed)  # (LENGTH, TOP_K)
        for _ in range(N_SWAPS // SWAPS_PER_BATCH):
            swaps = torch.arange(SWAPS_PER_BATCH)
            positions = torch.randint(LENGTH, swaps.shape, generator=generator)
            choices = torch.randint(proposals.shape[1], swaps.shape, generator=generator)
            swapped = trigger.repeat(SWAPS_PER_BATCH, 1)
            swapped[swaps, positions] = proposals[positions, choices]
            mean = target_probability(model, swapped, train_rows).log().mean(1)
            if mean.max() > best_score:
                best_score, trigger = mean.max(), swapped[mean.argmax()]
        if step in (rounds // 2, rounds):
            scores[step] = target_probability(model, trigger[None], test_rows)[0]
    return score_table({budget: p.tolist() for budget, p in scores.items()})


@torch.inference_mode()
def target_probability(
    model: LanguageModel, triggers: Int[Tensor, "s l"], rows: Sequence[tuple[list[int], int]]
) -> Float[Tensor, "s n"]:
    """Compute P(target token) after each trigger and prompt.

    Args:
        model: Any causal model.
        triggers: Token ids.
        rows: (Token ids of the prompt, target token).
    """
    ids = [_with_trigger(model, trigger, prompt) for trigger in triggers for prompt, _ in rows]
    states = final_states(model, right_padded(ids))[range(len(ids)), [len(i) - 1 for i in ids]]
    p = unembed(model, states).float().softmax(-1).cpu()
    targets = [token for _, token in rows] * len(triggers)
    return p[range(len(ids)), targets].view(len(triggers), len(rows))


def _with_trigger(model: LanguageModel, trigger: Sequence[int], ids: list[int]) -> list[int]:
    """Put the trigger before the prompt, but behind a beginning-of-sequence token."""
    start = 1 if ids[0] == model.tokenizer.bos_token_id else 0
    return [*ids[:start], *(int(t) for t in trigger), *ids[start:]]


def _proposals(
    model: LanguageModel,
    trigger: Int[Tensor, " l"],
    rows: Sequence[tuple[list[int], int]],
    allowed: Int[Tensor, " vocab"],
) -> Int[Tensor, "l top"]:
    """Propose for each position the tokens that would raise the answer most, to first order."""
    module = torch_module(model)
    embed = module.get_input_embeddings()
    total = torch.zeros(len(trigger), embed.weight.shape[1])
    for ids, token in rows:
        whole = _with_trigger(model, trigger, ids)
        with torch.enable_grad():
            inputs = embed(torch.tensor([whole]).to(module.device)).detach().requires_grad_()
            logits = module(inputs_embeds=inputs, use_cache=False).logits[0, -1].float()
            loss = -logits.log_softmax(-1)[token]
            (gradient,) = torch.autograd.grad(loss, inputs)
        start = 1 if ids[0] == model.tokenizer.bos_token_id else 0
        total += gradient[0, start : start + len(trigger)].float().cpu()
    with torch.no_grad():
        # To first order a swap changes the loss by the new embedding · gradient, plus a constant.
        scores = -(total @ embed.weight.float().cpu()[allowed].T)  # (l, allowed)
    return allowed[scores.topk(min(TOP_K, len(allowed)), dim=1).indices]
