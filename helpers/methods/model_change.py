"""The interface that weight edits and hook interventions share."""

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, Protocol

from torch import Tensor


class ModelChange(Protocol):
    """A change of a model's function: a `WeightEdit` or a `HookIntervention`.

    Attributes:
        notes: Plain data about how it was made, such as the latents that a method chose.
    """

    notes: dict[str, Any]

    @property
    @abstractmethod
    def changes_weights(self) -> bool:
        """Tell whether weights change; an intervention leaves the fact in them."""

    @abstractmethod
    def parameter_names(self) -> Collection[str]:
        """Return the names of the parameters that it changes."""

    @abstractmethod
    def same_as(self, other: object) -> bool:
        """Tell whether the other has the same content, as one file that was read twice has."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return copies of its tensors for a file, by name."""

    @abstractmethod
    def size(self) -> int:
        """Return the bytes of its tensors."""
