"""Cross-entropy of the model with an activation replaced by its reconstruction."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.batching import BATCH_TOKENS
from helpers.forward.scoring import LOGIT_ROWS
from helpers.forward.sites import check_sites, site_value
from helpers.models import architecture_of, final_norm, unembed

Replacement = Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_out"]]


@torch.inference_mode()
def patched_ce_loss(
    model: LanguageModel,
    tokens: Int[Tensor, "n t"],
    replacements: Mapping[str, Replacement],
    *,
    layer: int,
    site: str,
    target: str = "",
    first: int = 1,
) -> dict[str, Float[np.ndarray, " n"]]:
    """Compute each sequence's loss with one activation replaced, for several replacements.

    Blocks below the layer run once: they are the same for all replacements.

    Args:
        model: Any model of a known family.
        tokens: Text to predict.
        replacements: Name → function from the activations at `site` to those at `target`, vectors
            in rows.
        layer: Index of the block.
        site: Input of the replacements, one of `helpers.tracing.SITES`.
        target: Site that is replaced; the same site by default.
        first: First position that is replaced. The first token is an attention sink (Xiao et al.
            2024), unlike all others, and SAEs are not trained on it.

    Returns:
        For `original` and each replacement the mean loss of every sequence, in nats a token.

    Raises:
        UserError: There is no such layer or site.
    """
    arch = architecture_of(model)
    layer = arch.check_layer(layer)
    target = target or site
    check_sites([site, target])
    last = arch.layers[-1].block
    losses: dict[str, list] = {name: [] for name in ("original", *replacements)}
    for ids in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
        with model.trace(ids) as tracer:
            below = arch.layers[layer - 1].block.output.clone().save() if layer else None
            final = last.output.save()
            tracer.stop()
        losses["original"].append(_losses(model, ids, final))
        for name, replace in replacements.items():
            with model.trace(ids) as tracer:
                for i in range(layer):
                    arch.layers[i].block.skip(below.clone())
                value = site_value(arch.layers[layer], site, len(ids))
                new = replace(value.flatten(0, 1)).unflatten(0, value.shape[:2])
                replaced = site_value(arch.layers[layer], target, len(ids))
                replaced[:, first:] = new[:, first:].to(replaced)
                final = last.output.save()
                tracer.stop()
            losses[name].append(_losses(model, ids, final))
    return {name: np.concatenate(parts) for name, parts in losses.items()}


def _losses(
    model: LanguageModel, ids: Int[Tensor, "b t"], residual: Float[Tensor, "b t d_model"]
) -> Float[np.ndarray, " b"]:
    """Compute each sequence's mean loss from the residual stream after the last block."""
    residual = residual.view(*ids.shape, -1)  # OPT flattens batch and time
    rows = max(1, LOGIT_ROWS // ids.shape[1])
    means = []
    for states, targets in zip(residual[:, :-1].split(rows), ids[:, 1:].split(rows), strict=True):
        logits = unembed(model, final_norm(model, states)).float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten().to(logits.device), reduction="none"
        )
        means.append(loss.view(targets.shape).mean(1).double().cpu())
    return torch.cat(means).numpy()
