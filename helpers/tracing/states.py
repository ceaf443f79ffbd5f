"""Read activations: which site, which layers, at which token, for many prompts at once."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.batching import length_batches
from helpers.errors import UserError
from helpers.facts.prompts import Prompt, subject_span
from helpers.models import LayerAnatomy, anatomy
from helpers.scoring import encode, rendered

SITES = ("heads", "attention", "mlp_in", "neurons", "mlp", "residual")
"""In the order in which a block computes them: the heads' outputs side by side, what attention
writes, what the MLP reads, its hidden activations, what it writes, the residual stream after the
block."""

Position = Literal["subject", "last"]


def site_value(layer: LayerAnatomy, site: str, batch: int):
    """The activation at `site` inside a trace, as (batch, T, width), writable in place.

    OPT flattens batch and time inside its blocks; the view undoes that.
    """
    value = {
        "heads": lambda: layer.attention.input,
        "attention": lambda: layer.attention_write.output,
        "mlp_in": lambda: _mlp_input(layer),
        "neurons": lambda: layer.mlp.out_envoy.input,
        "mlp": lambda: layer.mlp_write.output,
        "residual": lambda: layer.block.output,
    }[site]()
    return value.view(batch, -1, value.shape[-1])


def _mlp_input(layer: LayerAnatomy):
    """What W_in and the gate read; a gate reads first, and both read the same tensor.

    Without a gate it is a copy: blocks that normalise last (OPT-350m) add the tensor itself to
    what the MLP writes.
    """
    if layer.mlp.gate_envoy is not None:
        return layer.mlp.gate_envoy.input
    value = layer.mlp.in_envoy.input.clone()
    layer.mlp.in_envoy.input = value
    return value


def check_sites(sites: Sequence[str]) -> list[str]:
    """`sites` in order of computation.

    Raises:
        UserError: There is no such site.
    """
    for site in sites:
        if site not in SITES:
            raise UserError(f"There is no site '{site}'; choose from {', '.join(SITES)}.")
    return [site for site in SITES if site in sites]


def token_ids(model: LanguageModel, prompt: str) -> list[int]:
    """The tokens that the model sees for `prompt`."""
    return encode(model.tokenizer, rendered(prompt, model.tokenizer))


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


def capture(
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
    parts = anatomy(model)
    sites = check_sites(sites)
    layers = [parts.check_layer(i) for i in (range(parts.n_layers) if layers is None else layers)]
    ids = [token_ids(model, p) for p in prompts]
    at = [position_of(model, p, position) for p in prompts]
    found: dict[str, list] = {site: [None] * len(ids) for site in sites}
    for batch in length_batches([len(i) for i in ids]):
        width = max(len(ids[i]) for i in batch)
        tokens = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in batch])
        rows, columns = torch.arange(len(batch)), torch.tensor([at[i] for i in batch])
        with torch.inference_mode(), model.trace(tokens) as tracer:
            kept = {}.save()
            for i in sorted(set(layers)):
                for site in sites:
                    value = site_value(parts.layers[i], site, len(batch))
                    kept[site, i] = value[rows, columns].float().cpu()
            tracer.stop()
        for site in sites:
            stacked = torch.stack([kept[site, i] for i in layers], 1)  # (b, layers, width)
            for row, i in enumerate(batch):
                found[site][i] = stacked[row]
    return {site: torch.stack(rows) for site, rows in found.items()}


def capture_all(
    model: LanguageModel, ids: Sequence[int], sites: Sequence[str]
) -> dict[str, Float[Tensor, "layers t width"]]:
    """Activations of one token sequence at every layer and position."""
    parts = anatomy(model)
    sites = check_sites(sites)
    with torch.inference_mode(), model.trace(torch.tensor([list(ids)])) as tracer:
        kept = {site: [] for site in sites}.save()
        for layer in parts.layers:
            for site in sites:
                kept[site].append(site_value(layer, site, 1)[0].clone())
        tracer.stop()
    return {site: torch.stack(values) for site, values in kept.items()}
