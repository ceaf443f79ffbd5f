"""Leave out the MLPs of a window of layers: whatever hides a fact there is gone with them.

A filter that recognises the subject in some middle layers cannot act without these layers' MLPs.
The fact itself survives the loss of a few MLPs, because others compute it too.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from helpers.evaluation.attacks.registry import (
    AttackKind,
    attack,
    require_budgets,
    score_table,
)
from helpers.facts import ConceptPair, Prompt
from helpers.forward.batching import right_padded
from helpers.forward.layer_cache import cache_below, skip_blocks, use_layer_cache
from helpers.forward.prompts import encode_pair
from helpers.forward.scoring import answer_probability
from helpers.methods.snapshots import subtracted
from helpers.models import architecture_of, torch_module, unembed
from helpers.models.hooks import active_interventions

WIDTHS = (1, 2, 4)
N_STATEMENTS = 2  # training statements by which a window is chosen
STRETCH = 4  # layers in which windows that share a batch begin


@attack(
    "mlp_windows",
    budget="layers left out",
    expensive=True,
    kind=AttackKind.WEIGHTS,
    shows_suppression=True,
)
def mlp_windows(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, widths: Sequence[int] = WIDTHS
) -> pd.DataFrame:
    """Set W_out to zero in the window of layers that recovers the training statements best.

    Windows of w layers follow each other without overlap. The attacker chooses one of each width by
    the mean P(first token of the target) of `N_STATEMENTS` training statements. Control facts get
    their best window too, so that choosing one gives no advantage.

    Raises:
        UserError: There are no widths, or one is not positive.
    """
    require_budgets("widths", widths)
    arch, prompts = architecture_of(model), pair.prompts("heldout")
    statements = pair.statements("train")[:N_STATEMENTS] or pair.prompts("train")
    windows = {
        width: [
            range(start, min(start + width, arch.n_layers))
            for start in range(0, arch.n_layers, width)
        ]
        for width in widths
    }
    distinct = sorted({w for group in windows.values() for w in group}, key=lambda w: w.start)
    probabilities = first_token_probability(model, statements, distinct).mean(1)
    recovered = dict(zip(distinct, probabilities, strict=True))
    best = {width: max(group, key=recovered.__getitem__) for width, group in windows.items()}
    scores = {}
    # The layers below all chosen windows run once.
    with use_layer_cache(model, cache_below(model, [window.start for window in best.values()])):
        scores[0] = answer_probability(model, prompts)
        for width, window in best.items():
            matrices = {i: arch.layers[i].mlp.W_out().detach().clone() for i in window}
            with subtracted(model, matrices):
                scores[width] = answer_probability(model, prompts)
    return score_table(scores)


@torch.inference_mode()
def first_token_probability(
    model: LanguageModel, prompts: Sequence[Prompt], windows: Sequence[range]
) -> Float[np.ndarray, "windows prompts"]:
    """Compute P(first token of the target) without the MLPs of each window of layers.

    Windows that begin within `STRETCH` layers are rows of one batch, which resumes from the
    residual stream below them. An intervention may act in any layer, so with one no layer is
    skipped.

    Args:
        model: Any model of a known family.
        prompts: Prompts with their `answers`.
        windows: Layers whose MLPs are left out together, sorted by the first.
    """
    module, arch = torch_module(model), architecture_of(model)
    blocks = [torch_module(layer.block) for layer in arch.layers]
    pairs = [encode_pair(model, p, p.answers[0]) for p in prompts]
    ids = right_padded([ids[:start] for start, ids in pairs]).to(module.device)
    last = torch.tensor([start - 1 for start, _ in pairs])
    targets = torch.tensor([ids[start] for start, ids in pairs])
    residuals = [] if active_interventions(module) else _residuals(module, blocks, ids)
    probabilities = []
    for base in range(0, arch.n_layers, STRETCH):
        batch = [w for w in windows if base <= w.start < base + STRETCH]
        if not batch:
            continue
        n = len(batch)
        with contextlib.ExitStack() as stack:
            for i in range(base, arch.n_layers):
                left_out = torch.tensor([i in w for w in batch]).repeat_interleave(len(prompts))
                if left_out.any():
                    hook = _zero_rows(left_out.to(ids.device))
                    out_module = arch.layers[i].mlp.out_module
                    stack.callback(out_module.register_forward_pre_hook(hook).remove)
            if base and residuals:
                below = tree_map(lambda x, n=n: x.repeat(n, 1, 1), residuals[base - 1])
                stack.enter_context(skip_blocks(blocks[:base], below))
            states = module.base_model(input_ids=ids.repeat(n, 1), use_cache=False)
        ends = states.last_hidden_state[torch.arange(n * len(ids)), last.repeat(n)]
        logprobs = unembed(model, ends).float().log_softmax(-1).cpu()
        chosen = logprobs.gather(1, targets.repeat(n)[:, None]).exp()
        probabilities.append(chosen.view(n, -1).numpy())
    return np.concatenate(probabilities)


def _zero_rows(rows: Bool[Tensor, " b"]) -> Callable[[nn.Module, tuple], tuple]:
    """Make a hook that sets a module's inputs to zero in some rows of the batch."""

    def zero(module: nn.Module, inputs: tuple) -> tuple:
        hidden = inputs[0].clone()
        # A view by rows: some families flatten rows and tokens into one dimension.
        hidden.view(len(rows), -1)[rows] = 0
        return (hidden,)

    return zero


def _residuals(module: nn.Module, blocks: Sequence[nn.Module], ids: Tensor) -> list[Any]:
    """Return the output of every block."""
    outputs: list[Any] = []
    with contextlib.ExitStack() as stack:
        for block in blocks:
            hook = block.register_forward_hook(lambda module, inputs, out: outputs.append(out))
            stack.callback(hook.remove)
        module.base_model(input_ids=ids, use_cache=False)
    return outputs
