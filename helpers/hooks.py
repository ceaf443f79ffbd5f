"""Marks on a model whose computation is changed without a change of its weights.

Hooks do that. A mark makes the change part of `model_hash`, so that no cache confuses the changed
model with the plain one, and tells `helpers.scoring` that a sequence has to be run as a whole.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

_MARKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def marks(module: nn.Module) -> tuple[str, ...]:
    """Marks that the module carries, in the order in which they were put."""
    return tuple(text for text, _ in _MARKS.get(module, ()))


def put_mark(module: nn.Module, text: str, handles: Sequence[Any]) -> Callable[[], None]:
    """Mark a module; returns a call that removes the hooks and the mark.

    Args:
        module: The whole torch module, `model._module`.
        text: What tells this change from others.
        handles: Of its hooks: `.remove()` is called on each.
    """
    entry = (text, object())
    _MARKS.setdefault(module, []).append(entry)

    def remove() -> None:
        for handle in handles:
            handle.remove()
        _MARKS[module].remove(entry)

    return remove
