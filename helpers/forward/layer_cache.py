"""Cache the residual stream below an edited layer, so that later passes start half-way up.

An edit of layers ≥ l changes nothing below, and a model runs the same batches before and after it.
`use_layer_cache` keeps the residual stream at the input of layer l for every batch that
`helpers.forward.scoring` runs. For a common prefix it also keeps the keys and values of the layers
below. When the same batch comes again, the blocks below l are skipped. These are the same
operations on the same batches, so the results equal those of a full pass bit for bit.
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
from helpers.models import architecture_of, torch_module
from helpers.models.hooks import active_interventions

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer's attention, (rows, heads, tokens, d_head)."""


def expand_kv_cache(cache: KeysAndValues, n: int) -> DynamicCache:
    """Expand one prefix's KV cache to a batch of `n` rows."""
    wide = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in cache]
    return DynamicCache(wide)


@dataclass
class _CachedBatch:
    """One batch: output of block l − 1, keys and values below l, and the weights behind them."""

    output: Any
    weights: list[tuple[nn.Parameter | None, int]]
    kv_cache: KeysAndValues | None = None


class LayerCache:
    """Cache of the layers below one layer, for every batch that runs inside `use_layer_cache`.

    It holds d_model numbers a token in the model's dtype for as long as this object lives. Torch's
    version counters reveal a change of a weight below; then the batch runs in full again.

    Attributes:
        layer: The first layer that is always computed.
        skipped: Number of batches so far that started at `layer`.
    """

    def __init__(self, model: LanguageModel, layer: int, *, ignore_weight_changes: bool = False):
        """Create an empty cache.

        Args:
            model: Any model of a known family.
            layer: The first layer that is always computed.
            ignore_weight_changes: Keep using cached batches after weights below have changed: the
                upper layers of another state of the model then continue them.

        Raises:
            UserError: There is no such layer, or none below it.
        """
        arch = architecture_of(model)
        self.layer, self.skipped = arch.check_layer(layer), 0
        if not self.layer:
            raise UserError("There is no layer below layer 0 to cache: name a higher layer.")
        blocks = [torch_module(x.block) for x in arch.layers]
        above = {id(m) for block in (*blocks[self.layer :], arch.norm) for m in block.modules()}
        self._blocks = blocks[: self.layer]
        modules = torch_module(model).base_model.modules()
        self._modules_below = [m for m in modules if id(m) not in above]
        self._batches: dict[Hashable, _CachedBatch] = {}
        self._ignore_weight_changes = ignore_weight_changes

    def lookup(self, key: Hashable) -> _CachedBatch | None:
        """Return the cached batch, or None if there is none or a weight below has changed."""
        batch = self._batches.get(key)
        if batch is None or self._ignore_weight_changes:
            return batch
        weights = self.weights_below()
        if len(weights) != len(batch.weights):
            return None
        same = all(
            parameter is cached and version == cached_version
            for (parameter, version), (cached, cached_version) in zip(
                weights, batch.weights, strict=True
            )
        )
        return batch if same else None

    def weights_below(self) -> list[tuple[nn.Parameter | None, int]]:
        """Return every parameter below the layer with its version counter."""
        parameters = (p for m in self._modules_below for p in m._parameters.values())
        return [(p, -1 if p is None else p._version) for p in parameters]


def cache_below(model: LanguageModel, layers: Iterable[int]) -> LayerCache | None:
    """Create a cache of the layers below the lowest of `layers`; None if that is layer 0."""
    lowest = architecture_of(model).check_layer(min(layers))
    return LayerCache(model, lowest) if lowest else None


def lowest_layer(model: LanguageModel, names: Iterable[str]) -> int:
    """Return the lowest layer that has one of the parameters; 0 if one lies outside the layers."""
    module = torch_module(model)
    blocks = [torch_module(x.block) for x in architecture_of(model).layers]
    layer_of = {id(m): i for i, block in enumerate(blocks) for m in block.modules()}
    owners = [module.get_submodule(name.rpartition(".")[0]) for name in names]
    return min((layer_of.get(id(owner), 0) for owner in owners), default=0)


_IN_USE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def use_layer_cache(model: LanguageModel, cache: LayerCache | None) -> Iterator[LayerCache | None]:
    """Let passes of `helpers.forward.scoring` fill and use a cache, inside the context.

    Args:
        model: The model that runs.
        cache: The cache; None runs every pass in full.
    """
    module = torch_module(model)
    outer = _IN_USE.pop(module, None)
    if cache is not None:
        _IN_USE[module] = cache
    try:
        yield cache
    finally:
        _IN_USE.pop(module, None)
        if outer is not None:
            _IN_USE[module] = outer


@contextlib.contextmanager
def cached_forward(
    module: nn.Module, key: Hashable
) -> Iterator[Callable[[KeysAndValues], KeysAndValues]]:
    """Record one pass of the model over a batch the first time, and shorten it afterwards.

    An intervention may read any layer, so passes are full while one is active.

    Args:
        module: The model.
        key: Key of the batch.

    Yields:
        A function that adds the keys and values of the skipped layers to those of the pass.
    """
    cache: LayerCache | None = _IN_USE.get(module)
    if cache is None or active_interventions(module):
        yield lambda kv_cache: kv_cache
        return
    batch = cache.lookup(key)
    if batch is None:
        new_batch = _CachedBatch(None, cache.weights_below())

        def record(block: nn.Module, inputs: tuple, output: Any) -> None:
            new_batch.output = output
            cache._batches[key] = new_batch

        def record_kv_cache(kv_cache: KeysAndValues) -> KeysAndValues:
            new_batch.kv_cache = kv_cache[: cache.layer]
            return kv_cache

        hook = cache._blocks[-1].register_forward_hook(record)
        try:
            yield record_kv_cache
        finally:
            hook.remove()
    else:
        cache.skipped += 1
        with skip_blocks(cache._blocks, batch.output):
            yield lambda kv_cache: [*(batch.kv_cache or []), *kv_cache[cache.layer :]]


@contextlib.contextmanager
def skip_blocks(blocks: Iterable[nn.Module], output: Any) -> Iterator[None]:
    """Let blocks return `output` without computing anything, inside the context."""
    forwards = [(block, vars(block).get("forward")) for block in blocks]
    for block, _ in forwards:
        block.forward = lambda *inputs, **kwargs: output
    try:
        yield
    finally:
        for block, forward in forwards:
            if forward is None:
                del block.forward
            else:
                block.forward = forward
