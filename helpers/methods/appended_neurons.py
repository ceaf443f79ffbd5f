"""Whether an edit fits a model: the shapes of tensors, and neurons that are whole ones."""

from collections.abc import Iterable, Mapping

from torch import nn

from helpers.errors import UserError
from helpers.io.safe_text import visible
from helpers.methods.change import Change
from helpers.methods.snapshots import parameter
from helpers.models import Anatomy, MLPAnatomy


def parameter_shapes(module: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, ...] | None]:
    """Name → shape of the parameter; None for a bias that its layer does without.

    Raises:
        UserError: The model has no such tensor.
    """
    found = {name: parameter(module, name) for name in names}
    return {n: None if p is None else tuple(p.shape) for n, p in found.items()}


def shapes_after(
    changes: Mapping[str, Change], sizes: Mapping[str, tuple[int, ...] | None]
) -> dict[str, tuple[int, ...] | None]:
    """Shapes once the changes are made to tensors of the shapes `sizes`, all others' included.

    Raises:
        UserError: A change does not fit its tensor.
    """
    after = dict(sizes)
    for name, change in changes.items():
        size = sizes[name]
        if change.adds and (size is None or change.shape != size):
            raise UserError(
                f"The change of {visible(name)} is {change.shape} and the tensor is "
                f"{size or 'not there'}: it was made for another model."
            )
        if change.appended is None:
            continue
        new, axis = list(change.appended.shape), change.axis
        if size is None:
            fits = len(new) == 1
        else:
            fits = len(new) == len(size) and all(
                a == b for i, (a, b) in enumerate(zip(new, size, strict=True)) if i != axis
            )
        if not fits:
            raise UserError(
                f"What is appended to {visible(name)} is {tuple(new)} and the tensor "
                f"{size or 'a bias that is not there'}: it was made for another model."
            )
        if size is not None:
            new[axis] += size[axis]
            after[name] = tuple(new)
    return after


def check_sides(changes: Mapping[str, Change]) -> None:
    """Refuse neurons without a row or without a column, of whatever model.

    Raises:
        UserError: Names the part of the model whose matrices would not fit each other any more.
    """
    parts: dict[str, dict[str, Change]] = {}
    for name, change in changes.items():
        if change.appended is not None:
            parts.setdefault(name.rpartition(".")[0].rpartition(".")[0], {})[name] = change
    for part, mine in parts.items():
        counts = sorted({c.appended.shape[c.axis] for c in mine.values()})
        sides = {c.axis for c in mine.values() if c.appended.ndim == 2}
        if sides != {0, 1} or len(counts) > 1:
            told = "some" if len(counts) == 1 else " and ".join(map(str, counts))
            raise UserError(
                f"The edit appends {told} neurons to matrices of '{visible(part)}' that do not "
                "match: each has a row in every matrix that reads and a column in the one that "
                "writes."
            )


def check_neurons(changes: Mapping[str, Change], parts: Anatomy) -> None:
    """Refuse appended rows and columns that make no whole neurons of one MLP.

    Raises:
        UserError: Names the tensor that is no part of an MLP, or that lacks them.
    """
    new = {n: c.axis for n, c in changes.items() if c.appended is not None}
    for layer in parts.layers:
        needed = _sides(layer.mlp)
        biases = {_bias(n): 0 for n in needed if n != layer.mlp.out_name}
        if not new.keys() & (needed.keys() | biases.keys()):
            continue
        reads = {_bias(layer.mlp.in_name): layer.mlp.in_module}
        if layer.mlp.gate_name:
            reads[_bias(layer.mlp.gate_name)] = layer.mlp.gate_module
        needed |= {n: 0 for n, module in reads.items() if module.bias is not None}
        for name, axis in needed.items():
            if new.get(name) != axis:
                raise UserError(
                    f"The edit appends neurons to an MLP and has none for {name}, at axis {axis}: "
                    "it was made for another model."
                )
        for name in needed.keys() | biases.keys():
            new.pop(name, None)
    for name in new:
        raise UserError(
            f"The edit appends to {visible(name)}, which is no matrix that the neurons of an MLP "
            "have: it was made for another model."
        )


def _sides(mlp: MLPAnatomy) -> dict[str, int]:
    """The matrices of an MLP → the axis along which its neurons lie."""
    rows = 1 if mlp.transposed else 0
    reads = {name: rows for name in (mlp.in_name, mlp.gate_name) if name}
    return {**reads, mlp.out_name: 1 - rows}


def _bias(name: str) -> str:
    return f"{name.removesuffix('weight')}bias"
