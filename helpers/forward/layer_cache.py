"""Passes that start half-way up: what the layers below an edit compute is kept and used again.

An edit of layers ≥ l leaves everything below as it was, and a model is asked the same things before
and after. `use_layer_cache` keeps the residual stream at the entry of layer l (and, where sequences share a
beginning, the keys and values of the layers below) for every batch that `helpers.forward.scoring` runs;
when the same batch comes again, the blocks below l are skipped. Same batches, same operations:
the results are bit for bit those of a whole pass.
"""

import contextlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nnsight import LanguageModel
from torch import Tensor, nn
from transformers import DynamicCache

from helpers.errors import UserError
from helpers.models import architecture_of
from helpers.models.hooks import active_interventions

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Each layer's attention keys and values, (rows, heads, tokens, d_head)."""


def expand_kv_cache(cache: KeysAndValues, n: int) -> DynamicCache:
    """One beginning's keys and values as what each of `n` rows goes on after."""
    wide = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in cache]
    return DynamicCache(wide)


@dataclass
class _Kept:
    """One batch: what block l − 1 gave, keys and values below l, and the weights they came from."""

    output: Any
    weights: list[tuple[nn.Parameter | None, int]]
    cache: KeysAndValues | None = None


class LayerCache:
    """What the layers below one compute, for every batch seen inside `use_layer_cache`.

    Kept are d_model numbers a token, in the model's dtype, as long as this object lives. A change
    of a weight below (seen by torch's version counters) makes the batch run as a whole again;
    unless they are `frozen`: then upper layers of any other state of the model may follow them.

    Attributes:
        layer: The first layer that is always computed.
        skipped: Batches that started at `layer` so far.
    """

    def __init__(self, model: LanguageModel, layer: int, *, frozen: bool = False):
        """For one model and one layer.

        Raises:
            UserError: There is no such layer, or none below it.
        """
        arch = architecture_of(model)
        self.layer, self.skipped = arch.check_layer(layer), 0
        if not self.layer:
            raise UserError("There is nothing below layer 0 to be kept: name a higher layer.")
        blocks = [x.block._module for x in arch.layers]
        above = {id(m) for block in (*blocks[self.layer :], arch.norm) for m in block.modules()}
        self._blocks = blocks[: self.layer]
        self._below = [m for m in model._module.base_model.modules() if id(m) not in above]
        self._kept: dict[Hashable, _Kept] = {}
        self._frozen = frozen

    def find(self, key: Hashable) -> _Kept | None:
        """What was kept of a batch, unless a weight has changed since."""
        kept = self._kept.get(key)
        if kept is None or self._frozen:
            return kept
        now = self._weights()
        if len(now) != len(kept.weights):
            return None
        same = all(p is q and v == w for (p, v), (q, w) in zip(now, kept.weights, strict=True))
        return kept if same else None

    def _weights(self) -> list[tuple[nn.Parameter | None, int]]:
        found = (p for m in self._below for p in m._parameters.values())
        return [(p, -1 if p is None else p._version) for p in found]


def below(model: LanguageModel, layers: Iterable[int]) -> LayerCache | None:
    """What lies below the lowest of some layers; None where that is nothing."""
    lowest = architecture_of(model).check_layer(min(layers))
    return LayerCache(model, lowest) if lowest else None


def lowest_layer(model: LanguageModel, names: Iterable[str]) -> int:
    """The lowest layer that has one of the parameters; 0 where one lies outside the layers."""
    blocks = [x.block._module for x in architecture_of(model).layers]
    where = {id(m): i for i, block in enumerate(blocks) for m in block.modules()}
    owners = [model._module.get_submodule(name.rpartition(".")[0]) for name in names]
    return min((where.get(id(owner), 0) for owner in owners), default=0)


_IN_USE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def use_layer_cache(model: LanguageModel, lower: LayerCache | None) -> Iterator[LayerCache | None]:
    """Passes of `helpers.forward.scoring` inside the block keep and use what `lower` holds; None: plain."""
    module = model._module
    before = _IN_USE.pop(module, None)
    if lower is not None:
        _IN_USE[module] = lower
    try:
        yield lower
    finally:
        _IN_USE.pop(module, None)
        if before is not None:
            _IN_USE[module] = before


@contextlib.contextmanager
def cached_forward(
    module: nn.Module, key: Hashable
) -> Iterator[Callable[[KeysAndValues], KeysAndValues]]:
    """One pass of the model over the batch `key`: recorded the first time, shortened after it.

    Gives a call that completes the keys and values of the pass, where the caller wants them, by
    those of the layers that were skipped. An intervention may look anywhere: with one on, passes
    are whole.
    """
    lower: LayerCache | None = _IN_USE.get(module)
    if lower is None or active_interventions(module):
        yield lambda found: found
        return
    kept = lower.find(key)
    if kept is None:
        kept = _Kept(None, lower._weights())

        def record(block: nn.Module, inputs: tuple, output: Any) -> None:
            kept.output = output
            lower._kept[key] = kept

        def remember(found: KeysAndValues) -> KeysAndValues:
            kept.cache = found[: lower.layer]
            return found

        hook = lower._blocks[-1].register_forward_hook(record)
        try:
            yield remember
        finally:
            hook.remove()
    else:
        lower.skipped += 1
        with skipped(lower._blocks, kept.output):
            yield lambda found: [*(kept.cache or []), *found[lower.layer :]]


@contextlib.contextmanager
def skipped(blocks: Iterable[nn.Module], output: Any) -> Iterator[None]:
    """Inside, the blocks compute nothing and give `output`."""
    own = [(block, vars(block).get("forward")) for block in blocks]
    for block, _ in own:
        block.forward = lambda *inputs, **more: output
    try:
        yield
    finally:
        for block, forward in own:
            if forward is None:
                del block.forward
            else:
                block.forward = forward
