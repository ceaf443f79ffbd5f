"""Checks that an edit fits a model: the shapes of its tensors, and complete appended neurons."""

from collections.abc import Iterable, Mapping

from torch import nn

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.methods.change import Change
from helpers.methods.snapshots import parameter
from helpers.models import Architecture, MLPArchitecture

Shape = tuple[int, ...]


def parameter_shapes(module: nn.Module, names: Iterable[str]) -> dict[str, Shape | None]:
    """Return name → shape of the parameter; None for a bias that its layer does without.

    Raises:
        UserError: The model has no such tensor.
    """
    parameters = {name: parameter(module, name) for name in names}
    return {n: None if p is None else tuple(p.shape) for n, p in parameters.items()}


def shapes_after(
    changes: Mapping[str, Change], shapes: Mapping[str, Shape | None]
) -> dict[str, Shape | None]:
    """Return `shapes` as they are after the changes.

    Args:
        changes: Name → change.
        shapes: Name → shape before the changes, of at least the tensors that they change.

    Raises:
        UserError: A change does not fit its tensor.
    """
    new_shapes = dict(shapes)
    for name, change in changes.items():
        shape = shapes[name]
        if change.is_additive and (shape is None or change.shape != shape):
            raise UserError(
                f"The change of {visible(name)} is {change.shape} and the tensor is "
                f"{shape or 'not there'}: it was made for another model."
            )
        if change.appended is None:
            continue
        size = list(change.appended.shape)
        if not _can_append(tuple(size), shape, change.axis):
            raise UserError(
                f"What is appended to {visible(name)} is {tuple(size)} and the tensor "
                f"{shape or 'a bias that is not there'}: it was made for another model."
            )
        if shape is not None:
            size[change.axis] += shape[change.axis]
            new_shapes[name] = tuple(size)
    return new_shapes


def _can_append(appended: Shape, shape: Shape | None, axis: int) -> bool:
    """Tell whether two shapes agree in every axis but `axis`; a missing bias takes a vector."""
    if shape is None:
        return len(appended) == 1
    return len(appended) == len(shape) and all(
        a == b for i, (a, b) in enumerate(zip(appended, shape, strict=True)) if i != axis
    )


def check_both_sides(changes: Mapping[str, Change]) -> None:
    """Refuse appended neurons that lack a row or a column, for whatever model.

    Raises:
        UserError: Names the part of the model whose matrices would no longer fit each other.
    """
    modules: dict[str, list[Change]] = {}
    for name, change in changes.items():
        if change.appended is not None:
            module = name.rpartition(".")[0].rpartition(".")[0]
            modules.setdefault(module, []).append(change)
    for module, appending in modules.items():
        counts = sorted({c.appended.shape[c.axis] for c in appending})
        axes = {c.axis for c in appending if c.appended.ndim == 2}
        if axes != {0, 1} or len(counts) > 1:
            number = "some" if len(counts) == 1 else " and ".join(map(str, counts))
            raise UserError(
                f"The edit appends {number} neurons to matrices of '{visible(module)}' that do not "
                "match: each has a row in every matrix that reads and a column in the one that "
                "writes."
            )


def check_neurons(changes: Mapping[str, Change], arch: Architecture) -> None:
    """Refuse appended rows and columns that do not make complete neurons of one MLP.

    Raises:
        UserError: Names the tensor that is no part of an MLP, or that lacks them.
    """
    unexplained = {n: c.axis for n, c in changes.items() if c.appended is not None}
    for layer in arch.layers:
        axes = _neuron_axes(layer.mlp)
        biases = [bias_name(n) for n in axes if n != layer.mlp.out_name]
        if not unexplained.keys() & {*axes, *biases}:
            continue
        # Biases that the layer has get entries too; those it lacks are optional (thresholds).
        required = axes | {name: 0 for name in biases if _has_bias(layer.mlp, name)}
        for name, axis in required.items():
            if unexplained.get(name) != axis:
                raise UserError(
                    f"The edit appends neurons to an MLP and has none for {name}, at axis {axis}: "
                    "it was made for another model."
                )
        for name in {*required, *biases}:
            unexplained.pop(name, None)
    for name in unexplained:
        raise UserError(
            f"The edit appends to {visible(name)}, which is no matrix that the neurons of an MLP "
            "have: it was made for another model."
        )


def _neuron_axes(mlp: MLPArchitecture) -> dict[str, int]:
    """Return the names of an MLP's matrices → the axis along which its neurons lie."""
    axis = 1 if mlp.transposed else 0
    axes = {name: axis for name in (mlp.in_name, mlp.gate_name) if name}
    return {**axes, mlp.out_name: 1 - axis}


def _has_bias(mlp: MLPArchitecture, name: str) -> bool:
    """Tell whether the MLP has the named bias of W_in or of the gate."""
    module = mlp.in_module if name == bias_name(mlp.in_name) else mlp.gate_module
    return module.bias is not None


def bias_name(weight_name: str) -> str:
    """Return the name of the bias beside a weight."""
    return f"{weight_name.removesuffix('weight')}bias"
