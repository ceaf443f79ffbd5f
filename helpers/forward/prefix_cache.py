"""Cache the forward pass up to the first token, and below the first layer, that an edit can affect.

Before the first token on which an edit is active, a sequence has the same activations with and
without the edit, and no gradient with respect to the edit. Below the edit's first layer nothing
changes at all. So only the suffix of each sequence runs again, and only from that layer on. The
cache is a `ForwardRunner`: the pass that predicts with the unedited model can fill it.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from nnsight import LanguageModel
from torch import Tensor, nn
from transformers import DynamicCache

from helpers.forward.batching import right_padded, run_batched
from helpers.forward.layer_cache import KeysAndValues, expand_kv_cache, skip_blocks
from helpers.forward.prompts import Prompt
from helpers.forward.scoring import next_token_and_answer
from helpers.models import architecture_of, final_norm, torch_module

Ids = tuple[int, ...]
ActivePredicate = Callable[[int, Float[Tensor, "b t d_model"]], Bool[Tensor, "b t"]]
"""(layer, input of its W_in) → positions on which the edit is active."""


class PrefixCache:
    """For each sequence: where an edit is first active, and the unedited activations around it.

    The cache holds the keys and values of the edit's layers and of those above, before the first
    active token. From that token on it holds the residual stream below the edit's first layer.
    """

    def __init__(self, model: LanguageModel, *, layers: Sequence[int], is_active: ActivePredicate):
        """Create an empty cache.

        Args:
            model: Any model of a known family, without the edit.
            layers: The edited layers.
            is_active: Where an edited layer is active.
        """
        self._model, self._layers, self._is_active = model, sorted(layers), is_active
        self._takes_positions = takes_positions(torch_module(model))
        lower_layers = architecture_of(model).layers[: min(layers)]
        self._lower_blocks = [torch_module(x.block) for x in lower_layers]
        self._sequence_of: dict[Ids, Ids] = {}  # prefix of a sequence that was run → that sequence
        self._first_active: dict[Ids, int | None] = {}
        self._kv: dict[Ids, Float[Tensor, "layers two heads prefix d_head"]] = {}
        self._residual: dict[Ids, Float[Tensor, "suffix d_model"]] = {}

    def prefill(self, sequences: Iterable[Ids]) -> None:
        """Run every sequence that is not a prefix of one already run."""
        new = [ids for ids in dict.fromkeys(sequences) if ids not in self._sequence_of]
        for _ in run_batched(new, self):
            pass

    def prefill_prompts(
        self, prompts: Sequence[Prompt]
    ) -> tuple[Float[Tensor, "n vocab"], Float[np.ndarray, " n"]]:
        """Run prompts with their answers; return what the unedited model predicts.

        Args:
            prompts: Prompts with their `answers`.

        Returns:
            log P(next token) and P(answer) of each prompt.
        """
        return next_token_and_answer(self._model, prompts, runner=self)

    def first_active(self, ids: Ids) -> int | None:
        """Return the position of the first token on which the edit is active, or None."""
        first = self._first_active[self._sequence_of[ids]]
        return first if first is not None and first < len(ids) else None

    def run_prefix(self, ids: Ids) -> "ForwardOutput":
        """Run the common prefix of several sequences, for `run_batched`."""
        return _forward(self._model, [ids], self._layers, self._is_active)

    def run_suffixes(
        self, suffixes: Sequence[Ids], prefix: "ForwardOutput | None"
    ) -> Float[Tensor, "b t d_model"]:
        """Run suffixes after a prefix or from the start, for `run_batched`; fill the cache.

        Args:
            suffixes: Token ids, one suffix a row.
            prefix: Outputs of the common prefix; None if there is none.

        Returns:
            States after the final norm.
        """
        lowest = len(self._lower_blocks)
        output = _forward(self._model, suffixes, self._layers, self._is_active, prefix=prefix)
        for row, suffix in enumerate(suffixes):
            ids = (*prefix.ids, *suffix) if prefix else suffix
            active = output.is_active[row, : len(ids)].nonzero()
            first = self._first_active[ids] = int(active[0]) if len(active) else None
            for end in range(1, len(ids) + 1):
                self._sequence_of.setdefault(ids[:end], ids)
            if first is not None and lowest:
                self._residual[ids] = output.residual[row, first : len(ids)].clone()
            if first:
                both = [torch.stack([k[row], v[row]]) for k, v in output.kv_cache[lowest:]]
                self._kv[ids] = torch.stack([x[:, :, :first] for x in both])
        return output.final_states

    def forward_kwargs(self, sequences: Sequence[Ids], width: int) -> dict[str, Any]:
        """Return keyword arguments (KV cache, mask, positions) for a pass over the suffixes.

        The pass has to run inside `resume_above`. Shorter prefixes are padded on the left and
        masked.

        Args:
            sequences: Token ids, one sequence for each row of the pass.
            width: Tokens of a row of the pass.
        """
        starts = [self.first_active(ids) or 0 for ids in sequences]
        longest = max(starts)
        if not longest:
            return {}
        cached = [
            self._kv[self._sequence_of[ids]] if start else None
            for ids, start in zip(sequences, starts, strict=True)
        ]
        example = next(kv for kv in cached if kv is not None)
        layers, two, heads, _, d_head = example.shape
        padded = example.new_zeros(layers, two, len(cached), heads, longest, d_head)
        for row, (kv, start) in enumerate(zip(cached, starts, strict=True)):
            if kv is not None:
                padded[:, :, row, :, longest - start :] = kv
        # The skipped blocks read no keys, but the cache needs an entry of that length for each.
        blank = example.new_zeros(1, 1, longest, 1)
        cache = [(blank, blank)] * len(self._lower_blocks) + [(k, v) for k, v in padded]
        offsets, device = torch.tensor(starts), example.device
        mask = torch.arange(longest + width) >= (longest - offsets)[:, None]
        kwargs = {
            "past_key_values": DynamicCache(cache),
            "attention_mask": mask.long().to(device),
            "use_cache": True,
        }
        if self._takes_positions:
            kwargs["position_ids"] = (offsets[:, None] + torch.arange(width)).to(device)
        return kwargs

    def resume_above(
        self, sequences: Sequence[Ids], width: int
    ) -> contextlib.AbstractContextManager[None]:
        """Start passes over the suffixes at the edit's first layer, inside the context.

        Args:
            sequences: Token ids, one sequence for each row of the pass.
            width: Tokens of a row of the pass.
        """
        if not self._lower_blocks:
            return contextlib.nullcontext()
        lengths = [len(ids) - (self.first_active(ids) or 0) for ids in sequences]
        rows = [
            self._residual[self._sequence_of[ids]][:n]
            for ids, n in zip(sequences, lengths, strict=True)
        ]
        padded = [nn.functional.pad(x, (0, 0, 0, width - len(x))) for x in rows]
        return skip_blocks(self._lower_blocks, torch.stack(padded))


def takes_positions(module: nn.Module) -> bool:
    """Return whether the model takes `position_ids`; others derive them from the mask."""
    return "position_ids" in inspect.signature(module.forward).parameters


@dataclass(frozen=True)
class ForwardOutput:
    """Outputs of one forward pass; `is_active` and `residual` cover prefix and suffix.

    Attributes:
        ids: Tokens of the first row: those of a prefix.
        final_states: States after the final norm.
        is_active: Where an edited layer is active.
        residual: Residual stream below the first edited layer; None if that is layer 0.
        kv_cache: Keys and values of each layer's attention.
    """

    ids: Ids
    final_states: Float[Tensor, "b t d_model"]
    is_active: Bool[Tensor, "b whole"]
    residual: Float[Tensor, "b whole d_model"] | None
    kv_cache: KeysAndValues

    @property
    def states(self) -> Float[Tensor, "t d_model"]:
        """States of the only row of a prefix."""
        return self.final_states[0]


# Inference tensors could not be cached: later passes take gradients through them.
@torch.inference_mode(False)
@torch.no_grad()
def _forward(
    model: LanguageModel,
    rows: Sequence[Ids],
    layers: Sequence[int],
    is_active: ActivePredicate,
    *,
    prefix: ForwardOutput | None = None,
) -> ForwardOutput:
    """Run rows, padded on the right, each after the same prefix."""
    arch, lowest, n = architecture_of(model), min(layers), len(rows)
    tokens = right_padded(rows)
    cache = expand_kv_cache(prefix.kv_cache if prefix else [], n)
    with model.trace(tokens, past_key_values=cache, use_cache=True) as tracer:
        active_by_layer, below = {}.save(), [].save()  # type: ignore[attr-defined]
        if lowest:
            below.append(arch.layers[lowest - 1].block.output)
        for i in layers:
            active_by_layer[i] = is_active(i, arch.layers[i].mlp.in_envoy.input).cpu()
        final = arch.layers[-1].block.output.save()
        tracer.stop()
    active = torch.stack(list(active_by_layer.values())).any(0).reshape(tokens.shape)
    residual = below[0].reshape(*tokens.shape, -1) if lowest else None
    if prefix:
        active = torch.cat([prefix.is_active.expand(n, -1), active], 1)
        if lowest:
            residual = torch.cat([prefix.residual.expand(n, -1, -1), residual], 1)
    final_states = final_norm(model, final.reshape(*tokens.shape, -1))
    kv_cache = [(x.keys, x.values) for x in cache.layers]
    return ForwardOutput(rows[0], final_states, active, residual, kv_cache)
