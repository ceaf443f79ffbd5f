"""Harvesting activations: against the raw forward pass that stops at the same place.

The limit for one layer is the model's own forward pass, cut off by an exception in a hook at the
layer's MLP output; for all layers the same without a hook on any but the last. Rounds are
interleaved. A harvest also hashes the model's weights once, to name itself; that fixed time is
measured and taken off, since a real harvest is twenty times as long as one here.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from report import report

from helpers.facts.corpus import corpus_tokens
from helpers.forward.harvest import PASS_TOKENS, harvest
from helpers.models import architecture_of, load_model, model_hash

LAYER, ROUNDS, TOKENS = 15, 3, 8192


class FarEnoughError(Exception):
    """Raised in a hook: the forward pass has come far enough."""


def raw(model, tokens, layer: int) -> None:
    """Run a plain forward pass up to a layer's MLP output, in batches like ours."""

    def hook(*_):
        raise FarEnoughError

    handle = architecture_of(model).layers[layer].mlp.out_module.register_forward_hook(hook)
    for batch in tokens.split(PASS_TOKENS // tokens.shape[1]):
        try:
            with torch.inference_mode():
                model._module.base_model(input_ids=batch, use_cache=False)
        except FarEnoughError:
            continue
    handle.remove()


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    model = load_model()
    fixed = statistics.median(seconds(lambda: model_hash(model)) for _ in range(3))
    last = architecture_of(model).n_layers - 1
    tokens = corpus_tokens(model.tokenizer, n_tokens=TOKENS)
    cases = {"one layer": [LAYER], "all layers": list(range(last + 1))}
    rows: dict[str, dict[str, list[float]]] = {c: {"raw": [], "harvest": []} for c in cases}
    for round_ in range(ROUNDS + 1):
        for case, layers in cases.items():
            with tempfile.TemporaryDirectory() as folder:
                limit = seconds(lambda layers=layers: raw(model, tokens, layers[-1]))
                ours = seconds(
                    lambda layers=layers, folder=folder: harvest(
                        model, tokens, layers=layers, folder=Path(folder) / "h"
                    )
                )
            if round_:  # the first round warms up
                rows[case]["raw"].append(limit)
                rows[case]["harvest"].append(ours - fixed)
    median = {c: {k: statistics.median(v) for k, v in r.items()} for c, r in rows.items()}
    result = {
        "title": "Harvesting activations",
        "how": f"MLP outputs of {tokens.numel()} tokens into float16 files, against the model's "
        "own forward pass that stops at the same place. The time to hash the model, once a "
        f"harvest, is taken off ({fixed:.2f} s). Medians of {ROUNDS} interleaved rounds.",
        "rows": [
            {
                "what": f"layer {LAYER}" if case == "one layer" else case,
                "seconds": m["harvest"],
                "tokens per second": tokens.numel() / m["harvest"],
                "share of the raw pass": m["raw"] / m["harvest"],
            }
            for case, m in median.items()
        ],
        "seconds": rows,
    }
    report("harvest", result)


if __name__ == "__main__":
    main()
