"""A model's parameters as they are, kept and put back: the same objects, bit by bit."""

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
from helpers.models import anatomy


@dataclass(frozen=True)
class ParameterSnapshot:
    """A parameter as it was: the object itself (None where there was none) and its data."""

    parameter: nn.Parameter | None
    data: Tensor | None


def snapshot_parameters(module: nn.Module, names: Iterable[str]) -> dict[str, ParameterSnapshot]:
    """The named parameters as they are now."""
    found = {name: parameter(module, name) for name in names}
    return {
        n: ParameterSnapshot(p, None if p is None else p.detach().clone()) for n, p in found.items()
    }


def restore_parameters(module: nn.Module, kept: dict[str, ParameterSnapshot]) -> None:
    """The parameters as they were when `snapshot_parameters` saw them: the same objects, bit by bit."""
    with torch.no_grad():
        for name, before in kept.items():
            if before.parameter is not None:
                before.parameter.copy_(before.data)
            if parameter(module, name) is not before.parameter:
                set_parameter(module, name, before.parameter)


@contextlib.contextmanager
def preserved_parameters(
    module: nn.Module, names: Iterable[str]
) -> Iterator[dict[str, ParameterSnapshot]]:
    """The named parameters are put back bit by bit when the block ends; gives them as they were."""
    before = snapshot_parameters(module, names)
    try:
        yield before
    finally:
        with uninterrupted():
            restore_parameters(module, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done: what must not be left half-done is done whole."""
    theirs = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or theirs is None:
        yield  # signals are handled in the main thread, and None is a handler that we cannot keep
        return
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, theirs)
        if asked:
            signal.raise_signal(signal.SIGINT)


def edited_tensors_hash(
    module: nn.Module, names: Iterable[str], before: Mapping[str, ParameterSnapshot] | None = None
) -> str:
    """Hash of the named tensors as they are now, or as they were where `before` holds them."""
    found = []
    for name in sorted(names):
        kept = before[name].data if before and name in before else parameter(module, name)
        found += [name, "absent" if kept is None else kept]
    return content_hash(*found)


def owner_of(module: nn.Module, name: str) -> nn.Module:
    """The module whose parameter it is."""
    return module.get_submodule(name.rpartition(".")[0])


def parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter; None for a bias that its layer does without.

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
    """Set a parameter object, and the sizes that its layer remembers."""
    owner = owner_of(module, name)
    owner._parameters[name.rpartition(".")[2]] = value
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, Conv1D):
        owner.nx, owner.nf = owner.weight.shape


@contextlib.contextmanager
def subtracted(
    model: LanguageModel, removed: dict[int, Float[Tensor, "d_model d_mlp"]]
) -> Iterator[LanguageModel]:
    """The model with something subtracted from W_outs; bit-exactly restored after."""
    mlps = {i: anatomy(model).layers[i].mlp for i in removed}
    with preserved_parameters(model._module, [mlp.out_name for mlp in mlps.values()]):
        with torch.no_grad():
            for i, part in removed.items():
                weight = mlps[i].W_out()
                weight -= part.to(weight)
        yield model
