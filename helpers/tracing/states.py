"""Read activations: which site, which layers, at which token, for many prompts at once."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.prompts import Prompt, subject_span
from helpers.forward.batching import bucket_by_length
from helpers.forward.sites import check_sites, site_value, token_ids
from helpers.models import architecture_of

Position = Literal["subject", "last"]


def position_of(model: LanguageModel, prompt: Prompt, where: Position) -> int:
    """Index of the subject's last token or of the prompt's last token.

    Raises:
        UserError: The position is neither, or the prompt does not contain its subject.
    """
    if where == "last":
        return len(token_ids(model, prompt)) - 1
    if where == "subject":
        return subject_span(prompt, model.tokenizer)[1] - 1
    raise UserError(f"There is no position '{where}'; choose 'subject' or 'last'.")


def cache_activations(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    sites: Sequence[str] = ("mlp",),
    layers: Sequence[int] | None = None,
    position: Position = "last",
) -> dict[str, Float[Tensor, "n layers width"]]:
    """Activations of many prompts at one token each; the forward pass stops after the last layer.

    Args:
        model: Any model of a known family.
        prompts: Prompts that know their subject.
        sites: Any of `SITES`.
        layers: Which layers, all by default.
        position: At the subject's last token or at the prompt's last token.

    Returns:
        For each site a tensor (prompts, layers, width of the site), on the CPU.

    Raises:
        UserError: There is no such site, layer or position.
    """
    arch = architecture_of(model)
    sites = check_sites(sites)
    layers = [arch.check_layer(i) for i in (range(arch.n_layers) if layers is None else layers)]
    ids = [token_ids(model, p) for p in prompts]
    at = [position_of(model, p, position) for p in prompts]
    found: dict[str, list] = {site: [None] * len(ids) for site in sites}
    for batch in bucket_by_length([len(i) for i in ids]):
        width = max(len(ids[i]) for i in batch)
        tokens = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in batch])
        rows, columns = torch.arange(len(batch)), torch.tensor([at[i] for i in batch])
        with torch.inference_mode(), model.trace(tokens) as tracer:
            kept = {}.save()
            for i in sorted(set(layers)):
                for site in sites:
                    value = site_value(arch.layers[i], site, len(batch))
                    kept[site, i] = value[rows, columns].float().cpu()
            tracer.stop()
        for site in sites:
            stacked = torch.stack([kept[site, i] for i in layers], 1)  # (b, layers, width)
            for row, i in enumerate(batch):
                found[site][i] = stacked[row]
    return {site: torch.stack(rows) for site, rows in found.items()}


def cache_all_positions(
    model: LanguageModel, ids: Sequence[int], sites: Sequence[str]
) -> dict[str, Float[Tensor, "layers t width"]]:
    """Activations of one token sequence at every layer and position."""
    arch = architecture_of(model)
    sites = check_sites(sites)
    with torch.inference_mode(), model.trace(torch.tensor([list(ids)])) as tracer:
        kept = {site: [] for site in sites}.save()
        for layer in arch.layers:
            for site in sites:
                kept[site].append(site_value(layer, site, 1)[0].clone())
        tracer.stop()
    return {site: torch.stack(values) for site, values in kept.items()}
