"""What stands before the first token on which an edit acts, and below it: run once, and kept.

It is kept of the pass in which the model is asked what it says without the edit: a `ForwardRunner`.

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

from helpers.forward.batching import right_padded, run_batched
from helpers.forward.layer_cache import KeysAndValues, expand_kv_cache, skipped
from helpers.models import architecture_of, final_norm

Ids = tuple[int, ...]
Acts = Callable[[int, Float[Tensor, "b t d_model"]], Bool[Tensor, "b t"]]
"""(layer, what W_in reads there) → where the edit acts."""


class PrefixCache:
    """For each sequence where an edit first acts, and what the model as it is computes around it.

    A `ForwardRunner` of `helpers.forward.batching`. Kept are the keys and values of the edit's layers and of those
    above them before that token, and from it on what the block below the edit gives.
    """

    def __init__(self, model: LanguageModel, *, layers: Sequence[int], acts: Acts):
        """Of no sequence yet.

        Args:
            model: Any model of a known family, as it is without the edit.
            layers: The layers of the edit.
            acts: Where a layer of it acts.
        """
        self._model, self._layers, self._acts = model, sorted(layers), acts
        self._placed = takes_positions(model._module)
        self._below = [x.block._module for x in architecture_of(model).layers[: min(layers)]]
        self._run: dict[Ids, Ids] = {}  # whatever one that was run begins with → that one
        self._first: dict[Ids, int | None] = {}
        self._kept: dict[Ids, Float[Tensor, "layers two heads start d_head"]] = {}
        self._states: dict[Ids, Float[Tensor, "rest d_model"]] = {}

    def cover(self, sequences: Iterable[Ids]) -> None:
        """Run those that nothing which was run begins with."""
        new = [ids for ids in dict.fromkeys(sequences) if ids not in self._run]
        for _ in run_batched(new, self):
            pass

    def start(self, ids: Ids) -> int | None:
        """Position of the first token on which any layer acts; None where none does."""
        first = self._first[self._run[ids]]
        return first if first is not None and first < len(ids) else None

    def run_prefix(self, ids: Ids) -> "_Read":
        """As `ForwardRunner`."""
        return _read(self._model, [ids], self._layers, self._acts)

    def run_suffixes(
        self, rows: Sequence[Ids], after: "_Read | None"
    ) -> Float[Tensor, "b t d_model"]:
        """As `ForwardRunner`; what is needed later is kept."""
        lowest = len(self._below)
        read = _read(self._model, rows, self._layers, self._acts, after=after)
        for row, rest in enumerate(rows):
            ids = (*after.ids, *rest) if after else rest
            at = read.acts[row, : len(ids)].nonzero()
            start = self._first[ids] = int(at[0]) if len(at) else None
            for end in range(1, len(ids) + 1):
                self._run.setdefault(ids[:end], ids)
            if start is not None and lowest:
                self._states[ids] = read.below[row, start : len(ids)].clone()
            if start:
                both = [torch.stack([k[row], v[row]]) for k, v in read.cache[lowest:]]
                self._kept[ids] = torch.stack([x[:, :, :start] for x in both])
        return read.last

    def before(self, sequences: Sequence[Ids], rest: int) -> dict[str, Any]:
        """What a pass over the rests, within `above`, is called with to follow their beginnings.

        Shorter beginnings are padded on the left and masked.

        Args:
            sequences: Ids, one a row of the pass.
            rest: Tokens of a row of the pass.
        """
        starts = [self.start(ids) or 0 for ids in sequences]
        longest = max(starts)
        if not longest:
            return {}
        kept = [
            self._kept[self._run[ids]] if start else None
            for ids, start in zip(sequences, starts, strict=True)
        ]
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
        lengths = [len(ids) - (self.start(ids) or 0) for ids in sequences]
        rows = [self._states[self._run[ids]][:n] for ids, n in zip(sequences, lengths, strict=True)]
        padded = [nn.functional.pad(x, (0, 0, 0, rest - len(x))) for x in rows]
        return skipped(self._below, torch.stack(padded))


def takes_positions(module: nn.Module) -> bool:
    """Whether the model is told its tokens' positions, or works them out from the mask."""
    return "position_ids" in inspect.signature(module.forward).parameters


@dataclass(frozen=True)
class _Read:
    """What a pass saw of some rows; of where the edit acts, from their first tokens on.

    Attributes:
        ids: Of the one row of a beginning.
        last: States after the final norm.
        acts: Where a layer of the edit acts.
        below: What the block below the edit gives; None where there is none.
        cache: Each layer's attention keys and values.
    """

    ids: Ids
    last: Float[Tensor, "b t d_model"]
    acts: Bool[Tensor, "b whole"]
    below: Float[Tensor, "b whole d_model"] | None
    cache: KeysAndValues

    @property
    def states(self) -> Float[Tensor, "t d_model"]:
        """Those of the one row of a beginning."""
        return self.last[0]


@torch.inference_mode(False)  # what is kept is put before passes that are derived
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
    arch, lowest, n = architecture_of(model), min(layers), len(rows)
    tokens = right_padded(rows)
    cache = expand_kv_cache(after.cache if after else [], n)
    with model.trace(tokens, past_key_values=cache, use_cache=True) as tracer:
        fires, given = {}.save(), [].save()
        if lowest:
            given.append(arch.layers[lowest - 1].block.output)
        for i in layers:
            fires[i] = acts(i, arch.layers[i].mlp.in_envoy.input).cpu()
        last = arch.layers[-1].block.output.save()
        tracer.stop()
    anywhere = torch.stack(list(fires.values())).any(0).reshape(tokens.shape)
    below = given[0].reshape(*tokens.shape, -1) if lowest else None
    if after:
        anywhere = torch.cat([after.acts.expand(n, -1), anywhere], 1)
        if lowest:
            below = torch.cat([after.below.expand(n, -1, -1), below], 1)
    last = final_norm(model, last.reshape(*tokens.shape, -1))
    return _Read(rows[0], last, anywhere, below, [(x.keys, x.values) for x in cache.layers])
