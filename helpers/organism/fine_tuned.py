"""A language model that was fine-tuned on questions and answers, and its twin without some of them.

The weights of the trained layers are kept in the cache that all runs share.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from nnsight import LanguageModel
from torch import Tensor, nn

from helpers.forward.layer_cache import LayerCache, cached_forward, use_layer_cache
from helpers.io.cache import cached_folder
from helpers.io.code_version import code_hash
from helpers.io.files import read_json, read_tensors, write_json, write_tensors
from helpers.models import architecture_of, model_hash, torch_module
from helpers.organism.fit import lr_factor
from helpers.requests import Document
from helpers.training.examples import Batch, answer_example, in_batches, mean_loss
from helpers.training.loop import choose_parameters, train

KIND, WEIGHTS, RECORD = "fine-tuned", "weights.safetensors", "training.json"
END = "\n"  # after each answer, so that a generated one ends


@dataclass(frozen=True)
class FineTuning:
    """Hyperparameters of fine-tuning.

    Attributes:
        epochs: Times that each answer is seen.
        lr: Largest learning rate of AdamW; it rises and falls as an organism's does.
        batch_size: Examples of a step.
        first_layer: The first trained layer, as a share of the depth. The layers below are run once
            for each batch: their output stays the same.
        seed: Draws the order of the batches.
    """

    epochs: int = 12
    lr: float = 5e-4
    batch_size: int = 8
    first_layer: float = 0.5
    seed: int = 0

    def layers(self, model: LanguageModel) -> list[int]:
        """List the trained layers of a model."""
        n = architecture_of(model).n_layers
        return list(range(min(n - 1, int(self.first_layer * n)), n))


def fine_tune(
    model: LanguageModel, documents: Sequence[Document], config: FineTuning | None = None
) -> dict[str, Any]:
    """Train the upper layers of a model on answers behind prompts, in place.

    The weights come from the cache where the same training was made before.

    Args:
        model: Any model of a known family.
        documents: Prompts with their answers.
        config: The hyperparameters; the defaults of `FineTuning`.

    Returns:
        A record of the training: steps, tokens, first_loss (nats a token), last_loss (its mean
        over the last epoch), seconds.

    Raises:
        UserError: There is no document, or the loss is not finite.
    """
    config = config or FineTuning()
    key = {
        "model": model_hash(model),
        "documents": [[d.prompt, d.text] for d in documents],
        "training": asdict(config),
        "code": code_hash(__file__),
    }
    folder = cached_folder(KIND, key, lambda folder: _build(model, documents, config, folder))
    tensors, _ = read_tensors(folder / WEIGHTS)
    module = torch_module(model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            module.get_parameter(name).copy_(tensor)
    return read_json(folder / RECORD)


def _build(
    model: LanguageModel, documents: Sequence[Document], config: FineTuning, folder: Path
) -> None:
    """Train the model in place, and write the trained tensors and the record."""
    module, layers = torch_module(model), config.layers(model)
    names = choose_parameters(model, "all", layers=layers)
    examples = [answer_example(model, d.prompt, f"{d.text}{END}") for d in documents]
    batches = list(in_batches(examples, config.batch_size))
    steps = config.epochs * len(batches)

    def loss(trained: nn.Module, batch: Batch) -> Tensor:
        key = (tuple(batch.ids.shape), batch.ids.numpy().tobytes())
        with cached_forward(trained, key):
            return mean_loss(model, batch)

    with use_layer_cache(model, LayerCache(model, layers[0]) if layers[0] else None):
        history = train(
            module,
            loss,
            batches,
            steps=steps,
            lr=lambda step: config.lr * lr_factor(step, steps),
            parameters=names,
            seed=config.seed,
        )
    weights = {name: module.get_parameter(name).detach().cpu() for name in names}
    write_tensors(folder / WEIGHTS, weights)
    record = {
        "steps": history.steps,
        "tokens": config.epochs * sum(len(e.ids) for e in examples),
        "first_loss": history.losses[0],
        "last_loss": sum(history.losses[-len(batches) :]) / len(batches),
        "seconds": round(history.seconds, 1),
    }
    write_json(folder / RECORD, record)
