"""A change of what the model computes while its weights stay: the result of inference-time methods.

Nothing is removed from the model; whoever has the weights has the fact. An intervention is hooks on
the torch module, so everything that asks the model sees it (scoring, generation, nnsight's traces),
and it is gone without a trace when the hooks are taken off. It is plain data under the name of an
installer, so that it can be saved and loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from nnsight import LanguageModel
from torch import Tensor

from helpers.artifacts import content_hash
from helpers.errors import UserError
from helpers.hooks import put_mark

Installer = Callable[[LanguageModel, dict[str, Any], dict[str, Tensor]], Sequence[Any]]
INSTALLERS: dict[str, Installer] = {}


def installer(kind: str) -> Callable[[Installer], Installer]:
    """Register a function (model, settings, tensors) → handles of the hooks that it put."""

    def register(function: Installer) -> Installer:
        INSTALLERS[kind] = function
        return function

    return register


@dataclass(frozen=True, eq=False)
class Intervention:
    """What to do at inference time.

    Attributes:
        kind: Name of its installer.
        settings: Plain data for it.
        parts: Tensors for it.
        notes: What the method found on the way.
    """

    kind: str
    settings: dict[str, Any]
    parts: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    changes: ClassVar[Mapping] = MappingProxyType({})  # of weights: none
    widens: ClassVar[bool] = False

    def install(self, model: LanguageModel) -> Callable[[], None]:
        """Put the hooks on; returns the call that takes them off.

        Raises:
            UserError: There is no such installer, or the model has other sizes.
        """
        if self.kind not in INSTALLERS:
            raise UserError(
                f"There is no intervention '{self.kind}'; there are {', '.join(INSTALLERS)}."
            )
        handles = INSTALLERS[self.kind](model, self.settings, self.parts)
        named = [x for name in sorted(self.parts) for x in (name, self.parts[name])]
        text = content_hash(self.kind, self.settings, *named)
        return put_mark(model._module, f"{self.kind} {text}", handles)

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a file."""
        return {name: tensor.contiguous().clone() for name, tensor in self.parts.items()}

    def size(self) -> int:
        """Bytes of the numbers it holds."""
        return sum(t.numel() * t.element_size() for t in self.parts.values())
