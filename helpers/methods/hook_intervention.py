"""A change of what the model computes while its weights stay: the result of inference-time methods.

Nothing is removed from the model; whoever has the weights has the fact. An intervention is hooks on
the torch module, so everything that asks the model sees it (scoring, generation, nnsight's traces),
and it is gone without a trace when the hooks are taken off. It is plain data of a kind that says
which data that are, so that it can be saved and loaded, also from a file that nobody tamed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from nnsight import LanguageModel
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from helpers.errors import UserError
from helpers.io.files import check_finite
from helpers.io.hashing import content_hash, plain
from helpers.io.safe_text import visible
from helpers.methods.change import check_floats
from helpers.models.hooks import Hook, register_intervention


class Settings(BaseModel):
    """The settings of one kind of intervention, and the hooks that they stand for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Refuse tensors that the settings do not call for; most kinds call for none.

        Raises:
            UserError: Names the tensor.
        """
        for name in parts:
            raise UserError(f"it has no use for the tensor '{visible(name)}'")

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> Sequence[Hook]:
        """What is to be put on the model; nothing is yet.

        Raises:
            UserError: The model has other sizes.
        """
        raise NotImplementedError


KINDS: dict[str, type[Settings]] = {}


def intervention_kind(name: str) -> Callable[[type[Settings]], type[Settings]]:
    """Register a class of `Settings` as the kind `name`."""

    def register(settings: type[Settings]) -> type[Settings]:
        KINDS[name] = settings
        return settings

    return register


@dataclass(frozen=True, eq=False)
class HookIntervention:
    """What to do at inference time.

    Attributes:
        kind: A name in `KINDS`.
        settings: Plain data for it.
        parts: Tensors for it.
        notes: What the method found on the way.
    """

    kind: str
    settings: dict[str, Any]
    parts: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    changes: ClassVar[Mapping] = MappingProxyType({})  # of weights: none
    appends_neurons: ClassVar[bool] = False

    def __post_init__(self):
        """Check settings and tensors against each other.

        Raises:
            UserError: There is no such kind, or they are not what it is made of.
        """
        if self.kind not in KINDS:
            raise UserError(
                f"There is no intervention '{visible(self.kind)}'; there are {', '.join(KINDS)}."
            )
        check_floats(self.parts)
        check_finite(self.parts, f"The intervention ({self.kind})")
        try:
            self.checked().check_parts(self.parts)
        except UserError as error:
            told = str(error).rstrip(".")
            raise UserError(
                f"This is no intervention of the kind '{self.kind}' ({told}): make it again."
            ) from None

    def checked(self) -> Settings:
        """The settings as their kind reads them.

        Raises:
            UserError: Says what is wrong with them.
        """
        try:
            text = json.dumps(
                self.settings, default=plain
            )  # JSON has lists where Python has tuples
            return KINDS[self.kind].model_validate_json(text)
        except ValidationError as error:
            raise UserError(first_error(error)) from None

    @property
    def identity(self) -> str:
        """What tells it from others, on this model; the mark that the model carries."""
        named = [x for name in sorted(self.parts) for x in (name, self.parts[name])]
        return f"{self.kind} {content_hash(self.kind, self.settings, *named)}"

    def same_as(self, other: object) -> bool:
        """Whether the other has the same content: one file that was read twice."""
        return isinstance(other, HookIntervention) and other.identity == self.identity

    def install(self, model: LanguageModel) -> Callable[[], Callable[[], None]]:
        """Make ready what changes the model; returns a call that puts it on.

        That call gives another one, which takes it off; both may be called again and again.

        Raises:
            UserError: The model has other sizes.
        """
        hooks, identity = self.checked().hooks(model, self.parts), self.identity
        return lambda: register_intervention(model._module, identity, hooks)

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a file."""
        return {name: tensor.contiguous().clone() for name, tensor in self.parts.items()}

    def size(self) -> int:
        """Bytes of the numbers it holds."""
        return sum(t.numel() * t.element_size() for t in self.parts.values())


def first_error(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as part of a sentence: `its 'seed' is missing`."""
    first = error.errors(include_url=False)[0]
    keys = [str(key) for key in first["loc"]]  # of a choice its classes' names are among them
    where = visible(".".join(k for k in keys if not k[:1].isupper() and "[" not in k))[:80]
    told = visible(first["msg"]).removeprefix("Value error, ").rstrip(".")[:200]
    told = {"missing": "is missing", "extra_forbidden": "is not known"}.get(first["type"], told)
    if first["type"] not in ("missing", "extra_forbidden"):
        return f"its '{where}': {told}" if where else told
    return f"its '{where}' {told}"
