"""Read activations: any sites and layers, at chosen tokens of many prompts, in one pass each.

A forward pass stops after the last site that is needed, so the blocks above and the unembedding
cost nothing. Sequences with a common prefix, such as a template up to its subject, share one pass
over it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor
from transformers import DynamicCache

from helpers.errors import UserError
from helpers.forward.batching import BATCH_TOKENS, prefix_batches, right_padded
from helpers.forward.layer_cache import expand_kv_cache
from helpers.forward.prompts import Prompt, position_of, token_ids
from helpers.forward.sites import SITES, check_sites, site_value
from helpers.models import architecture_of, torch_module
from helpers.models.hooks import active_interventions

Position = Literal["subject", "last"]
Key = tuple[str, int]
"""(site, layer)."""
Selection = tuple[Sequence[int], Sequence[int]]
"""Token ids, and the positions that are read."""


def cache_activations(
    model: LanguageModel,
    prompts: Sequence[Prompt | str | Sequence[int]],
    *,
    sites: Sequence[str] | Mapping[str, Sequence[int]],
    layers: Sequence[int] | None = None,
    positions: Position | Literal["all"] | Sequence[Sequence[int] | None] = "last",
    max_tokens: int = BATCH_TOKENS,
) -> dict[Key, Float[Tensor, "n width"]]:
    """Return activations of prompts or token sequences, without gradients.

    Args:
        model: Any model of a known family.
        prompts: Prompts, or token ids.
        sites: Any of `helpers.forward.sites.SITES`; a mapping gives each its own layers.
        layers: Layers of all sites; all of the model's by default.
        positions: `last` (the last token), `subject` (the subject's last token) or `all`; or for
            each prompt the positions to read, None for all of them. Tokens after the last of the
            given positions are not run.
        max_tokens: Tokens of a forward pass, padding included.

    Returns:
        (site, layer) → one row a position, in the order of the prompts and of their positions, as
        float32 on the CPU. `stack_layers` puts the layers of one site into one tensor.

    Raises:
        UserError: There is no such site, layer or position.
    """
    keys = _keys(model, sites, layers)
    if not keys:
        return {}
    selections = _selections(model, prompts, positions)
    starts = [0, *accumulate(len(chosen) for _, chosen in selections)]
    activations: dict[Key, Tensor] = {}
    for members, batch in activation_batches(model, selections, keys, max_tokens=max_tokens):
        rows = torch.tensor([row for i in members for row in range(starts[i], starts[i + 1])])
        for key, values in batch.items():
            if key not in activations:
                activations[key] = torch.empty(starts[-1], values.shape[1])
            activations[key][rows] = values
    return activations


def stack_layers(
    activations: Mapping[Key, Float[Tensor, "n width"]], site: str
) -> Float[Tensor, "n layers width"]:
    """Put the layers of one site into one tensor, lowest layer first."""
    return torch.stack([values for (name, _), values in activations.items() if name == site], 1)


def activation_batches(
    model: LanguageModel,
    selections: Sequence[Selection],
    keys: Sequence[Key],
    *,
    max_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[list[int], dict[Key, Float[Tensor, "n width"]]]]:
    """Yield the activations of `cache_activations` batch by batch.

    Args:
        model: Any model of a known family.
        selections: Token ids with the positions to read.
        keys: (site, layer) in order of computation.
        max_tokens: Tokens of a forward pass, padding included.

    Yields:
        Indices of the batch's sequences, and (site, layer) → one row for each of their positions,
        as float32 on the CPU.
    """
    # An intervention may read all tokens before a position, so it needs whole sequences.
    split_prefixes = not active_interventions(torch_module(model))
    sequences = [tuple(ids) for ids, _ in selections]
    groups = prefix_batches(sequences, split_prefixes=split_prefixes, max_tokens=max_tokens)
    for prefix, batches in groups:
        n, in_prefix, past = len(prefix), {}, DynamicCache()
        if n:
            with torch.inference_mode():
                in_prefix = trace_activations(model, torch.tensor([prefix]), keys, past=past)
        kv_cache = [(x.keys, x.values) for x in past.layers]
        for members in batches:
            tokens = right_padded([sequences[i][n:] for i in members])
            # Positions count from the end of the prefix: those in it are negative.
            places = [(row, p - n) for row, i in enumerate(members) for p in selections[i][1]]
            row, position = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
            is_suffix = position >= 0
            rows = (row * tokens.shape[1] + position)[is_suffix]

            def select(value: Tensor, layer: int, rows: Tensor = rows) -> Tensor:
                return value.reshape(-1, value.shape[-1])[rows].float().cpu()

            past = expand_kv_cache(kv_cache, len(members)) if n else None
            with torch.inference_mode():
                batch = trace_activations(model, tokens, keys, select=select, past=past)
            if not is_suffix.all():
                for key, values in batch.items():
                    batch[key] = torch.empty(len(places), values.shape[1])
                    batch[key][is_suffix] = values
                    batch[key][~is_suffix] = in_prefix[key][0, position[~is_suffix]].float().cpu()
            yield members, batch


def trace_activations(
    model: LanguageModel,
    tokens: Int[Tensor, "b t"],
    keys: Sequence[Key],
    *,
    select: Callable[[Float[Tensor, "b t width"], int], Tensor] | None = None,
    past: DynamicCache | None = None,
) -> dict[Key, Tensor]:
    """Run one batch up to the last of `keys` and return its activations.

    They carry gradients where gradients are on.

    Args:
        model: Any model of a known family.
        tokens: Sequences of one length, or padded on the right.
        keys: (site, layer) in order of computation.
        select: Takes an activation and its layer inside the pass and returns the part to keep; by
            default all of it, (b, t, width).
        past: Keys and values of the tokens before; those of this batch are added to it.
    """
    layers = architecture_of(model).layers
    cache = {} if past is None else {"past_key_values": past}
    with model.trace(tokens, use_cache=past is not None, **cache) as tracer:
        activations = {}.save()  # type: ignore[attr-defined]  # nnsight adds it to objects
        for site, layer in keys:
            value = site_value(layers[layer], site, len(tokens))
            activations[site, layer] = select(value, layer) if select else value.clone()
        tracer.stop()
    return dict(activations)


def _keys(
    model: LanguageModel,
    sites: Sequence[str] | Mapping[str, Sequence[int]],
    layers: Sequence[int] | None,
) -> list[Key]:
    """List every (site, layer) once, in order of computation."""
    arch = architecture_of(model)
    names = check_sites(list(sites))
    if not isinstance(sites, Mapping):
        sites = dict.fromkeys(names, range(arch.n_layers) if layers is None else layers)
    keys = {(site, arch.check_layer(layer)) for site in names for layer in sites[site]}
    return sorted(keys, key=lambda key: (key[1], SITES.index(key[0])))


def _selections(
    model: LanguageModel,
    prompts: Sequence[Prompt | str | Sequence[int]],
    positions: Position | Literal["all"] | Sequence[Sequence[int] | None],
) -> list[Selection]:
    """Tokenise prompts and turn named positions into indices."""
    ids = [token_ids(model, p) if isinstance(p, str | Prompt) else p for p in prompts]
    if not isinstance(positions, str):
        return list(map(select_positions, ids, positions))
    if positions == "subject":
        subjects = [position_of(model, p, "subject") for p in prompts if isinstance(p, Prompt)]
        if len(subjects) < len(ids):
            raise UserError("Only a prompt knows its subject: give positions of other sequences.")
        return [(i, [position]) for i, position in zip(ids, subjects, strict=True)]
    if positions == "last":
        return [(i, [len(i) - 1]) for i in ids]
    if positions == "all":
        return [(i, range(len(i))) for i in ids]
    raise UserError(f"There is no position '{positions}'; choose 'subject', 'last' or 'all'.")


def select_positions(ids: Sequence[int], positions: Sequence[int] | None) -> Selection:
    """Pair tokens with the positions to read, None for all of them.

    Attention is causal: tokens after the last position cannot affect it and are left out.
    """
    if positions is None:
        return ids, range(len(ids))
    return ids[: max(positions, default=0) + 1], positions
