"""Interventions: forward hooks that change a model's function without a change of its weights.

Each registered intervention leaves a fingerprint on the module. Fingerprints are part of
`model_hash`, so that no cache confuses the changed model with the plain one, and they tell
`helpers.forward.scoring` that a sequence has to be run as a whole.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.utils.hooks import RemovableHandle

_ACTIVE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Hook:
    """A forward hook that is not registered yet; `register_intervention` registers it.

    Attributes:
        module: The module whose forward pass is hooked.
        call: The function, with the signature that PyTorch expects.
        before: Call it before the pass, with the inputs; otherwise after it.
        with_kwargs: Give it the pass's keyword arguments too.
    """

    module: nn.Module
    call: Callable
    before: bool = False
    with_kwargs: bool = False

    def register(self) -> RemovableHandle:
        """Register the hook and return PyTorch's handle."""
        if self.before:
            return self.module.register_forward_pre_hook(self.call, with_kwargs=self.with_kwargs)
        return self.module.register_forward_hook(self.call, with_kwargs=self.with_kwargs)


def active_interventions(module: nn.Module) -> tuple[str, ...]:
    """Return fingerprints of the module's interventions, the first registered first."""
    return tuple(fingerprint for fingerprint, _ in _ACTIVE.get(module, ()))


def register_intervention(
    module: nn.Module, fingerprint: str, hooks: Sequence[Hook]
) -> Callable[[], None]:
    """Register hooks and leave a fingerprint on the module, all or nothing.

    Args:
        module: The whole torch module, `model._module`.
        fingerprint: Tells this intervention from others.
        hooks: Hooks of the module and its parts.

    Returns:
        A call that removes both; to call it again changes nothing.
    """
    entry, handles = (fingerprint, object()), []

    def remove() -> None:
        for handle in handles:
            handle.remove()
        active = _ACTIVE.get(module, [])
        if entry in active:  # a second call finds nothing to remove
            active.remove(entry)

    try:
        for hook in hooks:
            handles.append(hook.register())
        _ACTIVE.setdefault(module, []).append(entry)
    except BaseException:  # out of memory, or interrupted: remove the hooks registered so far
        remove()
        raise
    return remove
