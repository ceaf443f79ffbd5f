"""What stands before the first token on which an edit acts, and below it: run once, and kept.

A prompt up to its subject reads the same before and after an edit that only the subject fires, and
no derivative by the edit is taken there; nor does the edit change anything below its first layer.
So of every sequence only the rest is run again, and only from that layer on.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from torch import Tensor, nn
from transformers import DynamicCache

from helpers.batching import length_batches, prefix_groups, right_padded
from helpers.lower_layers import KeysAndValues, followed, skipped
from helpers.models import anatomy

Ids = tuple[int, ...]
Acts = Callable[[int, Float[Tensor, "b t d_model"]], Bool[Tensor, "b t"]]
"""(layer, what W_in reads there) → where the edit acts."""


class Beginnings:
    """For each sequence where an edit first acts, and what the model as it is computes around it.

    Kept are the keys and values of the edit's layers and of those above them before that token, and
    from it on what the block below the edit gives.

    Attributes:
        start: Ids → position of the first token on which any layer acts; None where none does.
    """

    def __init__(
        self,
        model: LanguageModel,
        sequences: Iterable[Ids],
        *,
        layers: Sequence[int],
        acts: Acts,
    ):
        """Run every sequence once, the model as it is.

        Args:
            model: Any model of a known family.
            sequences: Token ids.
            layers: The layers of the edit.
            acts: Where a layer of it acts.
        """
        self.start: dict[Ids, int | None] = {}
        self._kept: dict[Ids, Float[Tensor, "layers two heads start d_head"]] = {}
        self._states: dict[Ids, Float[Tensor, "rest d_model"]] = {}
        self._placed = takes_positions(model._module)
        lowest = min(layers)
        self._below = [x.block._module for x in anatomy(model).layers[:lowest]]
        every = list(dict.fromkeys(sequences))
        for shared, members in prefix_groups(every):
            group = [every[i] for i in members]
            head = _read(model, [group[0][:shared]], layers, acts) if shared else None
            for batch in length_batches([len(ids) - shared for ids in group]):
                rows = [group[i] for i in batch]
                read = _read(model, [ids[shared:] for ids in rows], layers, acts, after=head)
                for row, ids in enumerate(rows):
                    at = read.acts[row, : len(ids)].nonzero()
                    start = self.start[ids] = int(at[0]) if len(at) else None
                    if start is not None and lowest:
                        self._states[ids] = read.states[row, start : len(ids)].clone()
                    if start:
                        both = [torch.stack([k[row], v[row]]) for k, v in read.cache[lowest:]]
                        self._kept[ids] = torch.stack([x[:, :, :start] for x in both])

    def before(self, sequences: Sequence[Ids], rest: int) -> dict[str, Any]:
        """What a pass over the rests, within `above`, is called with to follow their beginnings.

        Shorter beginnings are padded on the left and masked.

        Args:
            sequences: Ids, one a row of the pass.
            rest: Tokens of a row of the pass.
        """
        starts = [self.start[ids] or 0 for ids in sequences]
        longest = max(starts)
        if not longest:
            return {}
        kept = [self._kept.get(ids) for ids in sequences]
        first = next(k for k in kept if k is not None)
        layers, two, heads, _, width = first.shape
        rows = first.new_zeros(layers, two, len(kept), heads, longest, width)
        for row, (k, start) in enumerate(zip(kept, starts, strict=True)):
            if k is not None:
                rows[:, :, row, :, longest - start :] = k
        blank = first.new_zeros(1, 1, longest, 1)  # the blocks that `above` skips read none
        cache = [(blank, blank)] * len(self._below) + [(keys, values) for keys, values in rows]
        begin, device = torch.tensor(starts), first.device
        mask = torch.arange(longest + rest) >= (longest - begin)[:, None]
        call = {
            "past_key_values": DynamicCache(cache),
            "attention_mask": mask.long().to(device),
            "use_cache": True,
        }
        if self._placed:
            call["position_ids"] = (begin[:, None] + torch.arange(rest)).to(device)
        return call

    def above(self, sequences: Sequence[Ids], rest: int) -> contextlib.AbstractContextManager[None]:
        """Inside, a pass over the rests starts at the edit's first layer.

        Args are those of `before`.
        """
        if not self._below:
            return contextlib.nullcontext()
        rows = [self._states[ids] for ids in sequences]
        padded = [nn.functional.pad(x, (0, 0, 0, rest - len(x))) for x in rows]
        return skipped(self._below, torch.stack(padded))


def takes_positions(module: nn.Module) -> bool:
    """Whether the model is told its tokens' positions, or works them out from the mask."""
    return "position_ids" in inspect.signature(module.forward).parameters


@dataclass(frozen=True)
class _Read:
    """What a pass saw of some rows, from their first tokens on.

    Attributes:
        acts: Where a layer of the edit acts.
        states: What the block below the edit gives; None where there is none.
        cache: Each layer's attention keys and values.
    """

    acts: Bool[Tensor, "b t"]
    states: Float[Tensor, "b t d_model"] | None
    cache: KeysAndValues


@torch.no_grad()
def _read(
    model: LanguageModel,
    rows: Sequence[Ids],
    layers: Sequence[int],
    acts: Acts,
    *,
    after: _Read | None = None,
) -> _Read:
    """Run rows, padded on the right, each after the one row of `after`."""
    parts, lowest, n = anatomy(model), min(layers), len(rows)
    tokens = right_padded(rows)
    cache = followed(after.cache if after else [], n)
    with model.trace(tokens, past_key_values=cache, use_cache=True) as tracer:
        fires, given = {}.save(), [].save()
        if lowest:
            given.append(parts.layers[lowest - 1].block.output)
        for i in sorted(layers):
            fires[i] = acts(i, parts.layers[i].mlp.in_envoy.input).cpu()
        parts.layers[-1].block.output.save()
        tracer.stop()
    anywhere = torch.stack(list(fires.values())).any(0).reshape(tokens.shape)
    states = given[0].reshape(*tokens.shape, -1) if lowest else None
    if after:
        anywhere = torch.cat([after.acts.expand(n, -1), anywhere], 1)
        if lowest:
            states = torch.cat([after.states.expand(n, -1, -1), states], 1)
    return _Read(anywhere, states, [(x.keys, x.values) for x in cache.layers])
