"""Marks on a model whose computation is changed without a change of its weights.

Hooks do that. A mark makes the change part of `model_hash`, so that no cache confuses the changed
model with the plain one, and tells `helpers.forward.scoring` that a sequence has to be run as a whole.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

_MARKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Hook:
    """What is to be called with a module's forward pass; `register_intervention` puts it on.

    Attributes:
        module: Whose forward pass.
        call: As PyTorch calls it.
        before: Before the pass, with its inputs; otherwise after it.
        kwargs: With the pass's keyword arguments.
    """

    module: nn.Module
    call: Callable
    before: bool = False
    kwargs: bool = False

    def put(self) -> Any:
        """Register it; returns PyTorch's handle."""
        if self.before:
            return self.module.register_forward_pre_hook(self.call, with_kwargs=self.kwargs)
        return self.module.register_forward_hook(self.call, with_kwargs=self.kwargs)


def active_interventions(module: nn.Module) -> tuple[str, ...]:
    """Marks that the module carries, in the order in which they were put."""
    return tuple(text for text, _ in _MARKS.get(module, ()))


def register_intervention(
    module: nn.Module, text: str, hooks: Sequence[Hook]
) -> Callable[[], None]:
    """Put hooks on and mark a module, all or nothing; returns a call that takes both off.

    Args:
        module: The whole torch module, `model._module`.
        text: What tells this change from others.
        hooks: Of the module and its parts.
    """
    entry, handles = (text, object()), []

    def remove() -> None:
        for handle in handles:
            handle.remove()
        put = _MARKS.get(module, [])
        if entry in put:  # asked twice, there is nothing left to do
            put.remove(entry)

    try:
        for hook in hooks:
            handles.append(hook.put())
        _MARKS.setdefault(module, []).append(entry)
    except BaseException:  # out of memory, or interrupted: what was put so far comes off
        remove()
        raise
    return remove
