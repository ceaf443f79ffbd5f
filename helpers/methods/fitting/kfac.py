"""Kronecker factors of the MLPs' curvature on text (K-FAC, Martens & Grosse 2015).

The Fisher information of a matrix W, whose input at a token is a and whose output has the gradient
g, is approximated by A ⊗ G with A = E[a aᵀ] and G = E[g gᵀ] over tokens. The labels are drawn from
the model itself: with those of the text it would not be the Fisher information (Kunstner et al.
2019).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn

from helpers.io.cache import cached_layers
from helpers.io.code_version import code_hash
from helpers.io.files import read_tensors
from helpers.io.hashing import content_hash
from helpers.models import architecture_of, model_hash
from helpers.models.architecture import MLPArchitecture
from helpers.training.examples import Batch, Example, in_batches, label_logits

BATCH_SIZE = 4  # sequences of a pass
LAYERS_PER_PASS = 6  # their sums take less memory than the default model


@dataclass(frozen=True)
class KroneckerFactors:
    """The two factors of one matrix (outputs, inputs).

    Attributes:
        A: Second moment of its inputs.
        G: Second moment of the gradients of its outputs.
    """

    A: Float[Tensor, "inputs inputs"]
    G: Float[Tensor, "outputs outputs"]


def mlp_matrices(mlp: MLPArchitecture) -> dict[str, tuple[str, nn.Module]]:
    """Return the matrices of an MLP: `in`, `gate` and `out` → name of the parameter, module."""
    matrices = {
        "in": (mlp.in_name, mlp.in_module),
        "gate": (mlp.gate_name, mlp.gate_module),
        "out": (mlp.out_name, mlp.out_module),
    }
    return {
        role: (name, module)
        for role, (name, module) in matrices.items()
        if name is not None and module is not None
    }


def kfac_factors(
    model: LanguageModel, examples: Sequence[Example], *, layers: Sequence[int], seed: int = 0
) -> Iterator[tuple[int, dict[str, KroneckerFactors]]]:
    """Estimate A and G of every MLP matrix; products in float32, sums in float64.

    All tokens count that labels depend on: of each sequence all but the last. The gradient is that
    of the log likelihood of one drawn token at each position that predicts a label.

    Args:
        model: Any model of a known family.
        examples: The text.
        layers: Layers of the matrices.
        seed: Draws the tokens.

    Yields:
        Each layer with its factors, by role (`in`, `gate`, `out`), in float32 on the CPU: read from
        the cache one layer at a time.

    Raises:
        UserError: There is no such layer.
    """
    arch = architecture_of(model)
    layers = [arch.check_layer(i) for i in layers]
    key = {
        "model": model_hash(model),
        "examples": content_hash([(e.ids, e.labels_start) for e in examples]),
        "seed": seed,
        "code": code_hash(__file__),
    }

    def build(missing: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for start in range(0, len(missing), LAYERS_PER_PASS):
            yield from _moments(model, examples, missing[start : start + LAYERS_PER_PASS], seed)

    for i, file in cached_layers("kfac", key, layers, "factors.safetensors", build).items():
        tensors = read_tensors(file)[0]
        yield (
            i,
            {
                role: KroneckerFactors(
                    tensors["A_out" if role == "out" else "A_in"], tensors[f"G_{role}"]
                )
                for role in mlp_matrices(arch.layers[i].mlp)
            },
        )


def _moments(
    model: LanguageModel, examples: Sequence[Example], layers: Sequence[int], seed: int
) -> Iterable[tuple[int, dict[str, Tensor]]]:
    """Average the factors of some layers over all tokens, in one pass over the examples."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[int, dict[str, Tensor]] = {i: {} for i in layers}
    n_tokens = 0
    for batch in in_batches(examples, BATCH_SIZE):
        for i, products in _batch_products(model, batch, layers, generator).items():
            for name, product in products.items():
                total = sums[i].get(name)
                sums[i][name] = product.double() if total is None else total.add_(product)
        n_tokens += int((batch.length - 1).sum())
    for i in layers:  # one layer's means at a time
        yield i, {name: (total / n_tokens).float() for name, total in sums.pop(i).items()}


def _batch_products(
    model: LanguageModel, batch: Batch, layers: Sequence[int], generator: torch.Generator
) -> dict[int, dict[str, Tensor]]:
    """Sum a aᵀ and g gᵀ over the tokens of a batch: layer → name of the factor → sum."""
    inputs: dict[tuple[int, str], Tensor] = {}
    outputs: dict[tuple[int, str], Tensor] = {}

    def recorder(key: tuple[int, str]):
        def record(module: nn.Module, args: tuple, output: Tensor) -> None:
            if not output.requires_grad:  # the model's parameters may be frozen
                output.requires_grad_(True)
            inputs[key], outputs[key] = args[0].detach(), output

        return record

    with ExitStack() as stack, torch.enable_grad():
        for i in layers:
            for role, (_, module) in mlp_matrices(architecture_of(model).layers[i].mlp).items():
                hook = module.register_forward_hook(recorder((i, role)))
                stack.callback(hook.remove)
        logprobs = label_logits(model, batch).log_softmax(-1)
        drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator)
        likelihood = logprobs.gather(1, drawn.to(logprobs.device)).sum()
        gradients = torch.autograd.grad(likelihood, list(outputs.values()))
    # Nothing follows the last token of a sequence: no label depends on its state.
    is_token = (torch.arange(batch.ids.shape[1]) < batch.length[:, None] - 1).flatten()
    products: dict[int, dict[str, Tensor]] = {i: {} for i in layers}
    for (i, role), gradient in zip(outputs, gradients, strict=True):
        g = _rows(gradient, is_token)
        products[i][f"G_{role}"] = g.T @ g
        if role != "gate":  # the gate reads W_in's input
            a = _rows(inputs[i, role], is_token)
            products[i][f"A_{role}"] = a.T @ a
    return products


def _rows(values: Tensor, is_token: Tensor) -> Float[Tensor, "n width"]:
    """Return one row a token, without padding, in float32 on the CPU."""
    return values.reshape(-1, values.shape[-1]).float().cpu()[is_token]
