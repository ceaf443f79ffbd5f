"""States after the final norm, which the unembedding turns into logits.

The forward pass is as cheap as the requests allow. Sequences with a common prefix (a template up
to its subject, a chat template) share one pass over it. They run in batches of similar length, and
only the states at requested positions are returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.forward.batching import BATCH_TOKENS, ForwardRunner, right_padded, run_batched
from helpers.forward.layer_cache import KeysAndValues, cached_forward, expand_kv_cache
from helpers.models import check_length, torch_module
from helpers.models.hooks import active_interventions

Requests = list[tuple[tuple[int, ...], range]]
"""Token ids with the positions whose states are requested."""


def final_states(model: LanguageModel, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t d_model"]:
    """Return the states after the final norm: `helpers.models.unembed` turns them into logits.

    Raises:
        UserError: The sequences are longer than what the model reads at once.
    """
    check_length(model, tokens.shape[1])
    rows = max(1, BATCH_TOKENS // tokens.shape[1])
    return torch.cat([_run(model, batch) for batch in tokens.split(rows)])


def states_at(
    model: LanguageModel, requests: Requests, runner: ForwardRunner | None = None
) -> tuple[Float[Tensor, "m d_model"], Int[Tensor, " k"]]:
    """Return states after the final norm at the requested positions, each computed once.

    Args:
        model: Any causal model.
        requests: Token ids and positions.
        runner: Runs the model; by default without keeping anything.

    Returns:
        The distinct states, and for each requested position, in order, the index of its state.
    """
    # A sequence that is a prefix of another one needs no pass of its own: only maximal ones run.
    run_of: dict[tuple[int, ...], int] = {}  # every prefix of a sequence -> the run that covers it
    runs: list[tuple[int, ...]] = []
    for ids in sorted({ids for ids, _ in requests}, key=len, reverse=True):
        if ids not in run_of:
            for end in range(1, len(ids) + 1):
                run_of.setdefault(ids[:end], len(runs))
            runs.append(ids)
    positions_of: list[set[int]] = [set() for _ in runs]
    for ids, positions in requests:
        positions_of[run_of[ids]].update(positions)

    states: dict[tuple[int, int], Tensor] = {}
    # An intervention may read all tokens before a position, so it needs whole sequences.
    split_prefixes = not active_interventions(torch_module(model))
    batches = run_batched(runs, runner or DirectRunner(model), split_prefixes=split_prefixes)
    for members, prefix, suffix_states in batches:
        offset = len(prefix.ids) if prefix else 0
        for row, i in enumerate(members):
            for p in sorted(positions_of[i]):
                in_suffix = p >= offset
                states[i, p] = suffix_states[row, p - offset] if in_suffix else prefix.states[p]
    keys = [(run_of[ids], p) for ids, positions in requests for p in positions]
    index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return torch.stack([states[key] for key in index]), torch.tensor([index[key] for key in keys])


@dataclass(frozen=True)
class _Prefix:
    """A prefix that `DirectRunner` ran, with its keys and values."""

    ids: tuple[int, ...]
    states: Float[Tensor, "t d_model"]
    kv_cache: KeysAndValues


@dataclass(frozen=True)
class DirectRunner:
    """The `ForwardRunner` that keeps nothing once the states are returned."""

    model: LanguageModel

    def run_prefix(self, ids: tuple[int, ...]) -> _Prefix:
        """Run a prefix and keep its keys and values for its suffixes."""
        return _Prefix(ids, *_run_prefix(self.model, ids))

    def run_suffixes(
        self, suffixes: Sequence[tuple[int, ...]], prefix: _Prefix | None
    ) -> Float[Tensor, "b t d_model"]:
        """Run suffixes, padded on the right, after a prefix or from the start."""
        ids, kv_cache = (prefix.ids, prefix.kv_cache) if prefix else ((), None)
        return _run(self.model, right_padded(suffixes), ids, kv_cache)


@torch.inference_mode()
def _run(
    model: LanguageModel,
    ids: Int[Tensor, "b t"],
    prefix: tuple[int, ...] = (),
    kv_cache: KeysAndValues | None = None,
) -> Float[Tensor, "b t d_model"]:
    """Run sequences, after a cached prefix if one is given."""
    module = torch_module(model)
    past = {}
    if kv_cache is not None:  # every row continues the same prefix
        past = {"past_key_values": expand_kv_cache(kv_cache, len(ids))}
    body, tokens = module.base_model, ids.to(module.device)
    with cached_forward(module, (prefix, ids.shape, ids.numpy().tobytes())):
        return body(input_ids=tokens, use_cache=bool(past), **past).last_hidden_state


@torch.inference_mode()
def _run_prefix(
    model: LanguageModel, ids: tuple[int, ...]
) -> tuple[Float[Tensor, "t d_model"], KeysAndValues]:
    """Run a prefix; return its states and each layer's attention keys and values."""
    module = torch_module(model)
    tokens = torch.tensor([ids]).to(module.device)
    with cached_forward(module, ids) as completed:
        out = module.base_model(input_ids=tokens, use_cache=True)
    layers = out.past_key_values.layers
    return out.last_hidden_state[0], completed([(x.keys, x.values) for x in layers])
