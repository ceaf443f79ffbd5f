"""Snapshots of a model's parameters, restored as the same objects, bit by bit."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers.errors import UserError
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible
from helpers.models import architecture_of, torch_module


@dataclass(frozen=True)
class ParameterSnapshot:
    """A parameter at one moment.

    Attributes:
        parameter: The parameter object; None for a bias that its layer does without.
        data: A copy of its numbers; None likewise.
    """

    parameter: nn.Parameter | None
    data: Tensor | None


def snapshot_parameters(module: nn.Module, names: Iterable[str]) -> dict[str, ParameterSnapshot]:
    """Copy the named parameters as they are now."""
    parameters = {name: parameter(module, name) for name in names}
    return {
        name: ParameterSnapshot(p, None if p is None else p.detach().clone())
        for name, p in parameters.items()
    }


def restore_parameters(module: nn.Module, snapshots: Mapping[str, ParameterSnapshot]) -> None:
    """Restore the same parameter objects with the same bits as in their snapshots."""
    with torch.no_grad():
        for name, snapshot in snapshots.items():
            if snapshot.parameter is not None:
                snapshot.parameter.copy_(snapshot.data)
            if parameter(module, name) is not snapshot.parameter:
                set_parameter(module, name, snapshot.parameter)


@torch.no_grad()
def set_changed(
    snapshots: Mapping[str, ParameterSnapshot], deltas: Iterable[tuple[str, Tensor]]
) -> None:
    """Set parameters to their snapshot plus a change, in place.

    Args:
        snapshots: The parameters as they were, by name.
        deltas: Names with changes of the parameter's shape, one after another.
    """
    for name, delta in deltas:
        snapshot = snapshots[name]
        # In float32: half precision would round the sum twice.
        changed = snapshot.data.float() + delta.to(snapshot.data.device)
        snapshot.parameter.copy_(changed)


@contextlib.contextmanager
def preserved_parameters(
    module: nn.Module, names: Iterable[str]
) -> Iterator[dict[str, ParameterSnapshot]]:
    """Restore the named parameters bit by bit when the `with` block ends; yield their snapshots."""
    snapshots = snapshot_parameters(module, names)
    try:
        yield snapshots
    finally:
        with uninterrupted():
            restore_parameters(module, snapshots)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the `with` block ends, so that nothing in it is left half-done."""
    previous_handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or previous_handler is None:
        yield  # signals are handled in the main thread; a handler of None cannot be set again
        return
    interrupts = []
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
        if interrupts:
            signal.raise_signal(signal.SIGINT)


def edited_tensors_hash(
    module: nn.Module,
    names: Iterable[str],
    snapshots: Mapping[str, ParameterSnapshot] | None = None,
) -> str:
    """Hash the named tensors, those in `snapshots` as they are there and others as they are now."""
    parts = []
    for name in sorted(names):
        if snapshots is not None and name in snapshots:
            tensor = snapshots[name].data
        else:
            tensor = parameter(module, name)
        parts += [name, "absent" if tensor is None else tensor]
    return content_hash(*parts)


def owner_of(module: nn.Module, name: str) -> nn.Module:
    """Return the submodule that holds the named parameter."""
    return module.get_submodule(name.rpartition(".")[0])


def parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return the named parameter; None for a bias that its layer does without.

    Raises:
        UserError: The model has no such tensor.
    """
    try:
        return owner_of(module, name)._parameters[name.rpartition(".")[2]]
    except (AttributeError, KeyError):
        raise UserError(
            f"The model has no tensor {visible(name)}: the edit is for another model."
        ) from None


def set_parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
    """Set a parameter object, and the sizes that its layer stores as attributes."""
    owner = owner_of(module, name)
    owner._parameters[name.rpartition(".")[2]] = value
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, Conv1D):
        owner.nx, owner.nf = owner.weight.shape


@contextlib.contextmanager
def subtracted(
    model: LanguageModel, parts: Mapping[int, Float[Tensor, "d_model d_mlp"]]
) -> Iterator[LanguageModel]:
    """Subtract matrices from W_out for a `with` block; restore the weights bit-exactly after it.

    Args:
        model: Any model of a known family.
        parts: Layer → matrix that is subtracted from its W_out.
    """
    mlps = {i: architecture_of(model).layers[i].mlp for i in parts}
    with preserved_parameters(torch_module(model), [mlp.out_name for mlp in mlps.values()]):
        with torch.no_grad():
            for i, part in parts.items():
                weight = mlps[i].W_out()
                weight -= part.to(weight)
        yield model
