"""The edits that a model carries, in the order in which they were applied.

Each entry holds the parameters as they were before its edit, so that any edit can be taken off
again bit by bit. Operations are all or nothing: an error or Ctrl-C leaves the model as it was.
"""

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnsight import LanguageModel

from helpers.methods.snapshots import (
    ParameterSnapshot,
    restore_parameters,
    snapshot_parameters,
    uninterrupted,
)
from helpers.models import torch_module

HookFactory = Callable[[], Callable[[], None]]  # registers hooks; returns a call that removes them


@dataclass(eq=False)
class AppliedEdit:
    """An edit on a model.

    Attributes:
        edit: The `Edit`.
        before: Snapshots of the parameters that it changes, taken before it was applied.
        register_hooks: Registers an intervention's hooks; None for a weight edit.
    """

    edit: Any  # an `Edit`, whose module imports this one
    before: dict[str, ParameterSnapshot]
    register_hooks: HookFactory | None = None
    _remove: Callable[[], None] | None = field(default=None, init=False)

    def add_hooks(self) -> None:
        """Register the hooks, unless they are registered."""
        if self.register_hooks and not self._remove:
            self._remove = self.register_hooks()

    def remove_hooks(self) -> None:
        """Remove the hooks, if they are registered."""
        if self._remove:
            self._remove()
            self._remove = None


_STACKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def applied_edits(model: LanguageModel) -> list[AppliedEdit]:
    """Return the model's stack of edits, the first applied edit first; callers may change it."""
    return _STACKS.setdefault(torch_module(model), [])


def earliest_snapshots(stack: Sequence[AppliedEdit]) -> dict[str, ParameterSnapshot]:
    """Return the parameters that some edits change, as they were before the first of them."""
    earliest: dict[str, ParameterSnapshot] = {}
    for entry in reversed(stack):
        earliest |= entry.before
    return earliest


def push(model: LanguageModel, entry: AppliedEdit) -> None:
    """Apply an entry's edit and put it on top of the stack."""
    applied_edits(model).append(entry)
    if entry.edit.changes_weights:
        entry.edit.delta.add_to(torch_module(model))
    entry.add_hooks()


def all_or_nothing(
    model: LanguageModel,
    names: Collection[str],
    change: Callable[[dict[str, ParameterSnapshot]], None],
) -> None:
    """Call `change`; if it raises, restore parameters, hooks and the stack.

    Args:
        model: The model.
        names: The parameters that `change` changes.
        change: Is called with their snapshots. Ctrl-C waits until it is done, and then undoes it.
    """
    stack, before = applied_edits(model), snapshot_parameters(torch_module(model), names)
    entries = list(stack)
    try:
        with uninterrupted():
            change(before)
    except BaseException:  # out of memory, or interrupted, too
        with uninterrupted():
            restore_parameters(torch_module(model), before)
            for entry in stack:
                entry.remove_hooks()
            stack[:] = entries
            _register_in_order(stack)
        raise


def _register_in_order(stack: Sequence[AppliedEdit]) -> None:
    """Register the hooks of all interventions, those of the first edit first."""
    for entry in stack:
        entry.remove_hooks()
    for entry in stack:
        entry.add_hooks()


@contextlib.contextmanager
def base_model(model: LanguageModel) -> Iterator[LanguageModel]:
    """Take all edits off the model for a `with` block.

    Edits that are applied inside the block and not reverted come off at its end.
    """
    module, stack = torch_module(model), applied_edits(model)
    before = earliest_snapshots(stack)
    edited = snapshot_parameters(module, before)
    try:
        with uninterrupted():
            _STACKS[module] = []
            for entry in stack:
                entry.remove_hooks()
            restore_parameters(module, before)
        yield model
    finally:
        with uninterrupted():
            inner = applied_edits(model)
            if inner is not stack:
                for entry in inner:
                    entry.remove_hooks()
                restore_parameters(module, earliest_snapshots(inner))
            restore_parameters(module, edited)
            _STACKS[module] = stack
            _register_in_order(stack)


def active_edits(model: LanguageModel) -> list[Any]:
    """Return the edits that the model carries (`Edit`), in the order in which they were applied."""
    return [entry.edit for entry in _STACKS.get(torch_module(model), [])]
