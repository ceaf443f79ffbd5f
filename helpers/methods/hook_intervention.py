"""Interventions: edits of inference-time methods, which hook activations and keep the weights.

Nothing is removed from the model; whoever has the weights has the fact. An intervention consists of
hooks on the torch module, so every forward pass runs it (scoring, generation, nnsight's traces),
and nothing stays of it when the hooks are removed. It is plain data of a registered kind. The
kind's settings check the data, so that it can be loaded from a file of unknown origin.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nnsight import LanguageModel
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from helpers.errors import UserError
from helpers.io.files import check_finite
from helpers.io.hashing import content_hash, json_default
from helpers.io.safe_text import visible
from helpers.methods.change import check_floats
from helpers.methods.model_change import ModelChange
from helpers.models import torch_module
from helpers.models.hooks import Hook, register_intervention


class Settings(BaseModel):
    """Base of the settings of one kind of intervention, which build its hooks."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def check_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Refuse tensors that do not go with the settings; most kinds have none.

        Raises:
            UserError: Names the tensor.
        """
        for name in parts:
            raise UserError(f"it has no use for the tensor '{visible(name)}'")

    def hooks(self, model: LanguageModel, parts: Mapping[str, Tensor]) -> Sequence[Hook]:
        """Return the hooks that realise the settings; they are not registered yet.

        Args:
            model: The model that they are for.
            parts: The intervention's tensors.

        Raises:
            UserError: The model has other sizes.
        """
        raise NotImplementedError


KINDS: dict[str, type[Settings]] = {}


def intervention_kind(name: str) -> Callable[[type[Settings]], type[Settings]]:
    """Register a class of `Settings` as the kind `name`.

    Raises:
        ValueError: There is a kind of that name.
    """

    def register(settings: type[Settings]) -> type[Settings]:
        if name in KINDS:
            raise ValueError(f"There are two interventions '{name}': name one of them otherwise.")
        KINDS[name] = settings
        return settings

    return register


@dataclass(frozen=True, eq=False)
class HookIntervention(ModelChange):
    """An edit that hooks activations at inference time.

    Attributes:
        kind: A name in `KINDS`.
        settings: Plain data, as the kind's class of settings reads it.
        parts: Tensors that go with the settings.
        notes: Plain data about how it was made, such as the latents that a method chose.
    """

    kind: str
    settings: dict[str, Any]
    parts: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    changes_weights: ClassVar[bool] = False

    def __post_init__(self):
        """Check settings and tensors against each other.

        Raises:
            UserError: There is no such kind, or they are not what the kind needs.
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
            reason = str(error).rstrip(".")
            raise UserError(
                f"This is no intervention of the kind '{self.kind}' ({reason}): make it again."
            ) from None

    def checked(self) -> Settings:
        """Return the settings as their kind reads them.

        Raises:
            UserError: Says what is wrong with them.
        """
        try:  # by way of JSON, which has lists where Python has tuples
            text = json.dumps(self.settings, default=json_default)
            return KINDS[self.kind].model_validate_json(text)
        except ValidationError as error:
            raise UserError(first_error(error)) from None

    @property
    def fingerprint(self) -> str:
        """Kind and hash of the content, which the model carries while the hooks are registered."""
        tensors = [x for name in sorted(self.parts) for x in (name, self.parts[name])]
        return f"{self.kind} {content_hash(self.kind, self.settings, *tensors)}"

    def parameter_names(self) -> tuple[str, ...]:
        """Return the names of the parameters that it changes: none."""
        return ()

    def same_as(self, other: object) -> bool:
        """Tell whether the other has the same content, as one file that was read twice has."""
        return isinstance(other, HookIntervention) and other.fingerprint == self.fingerprint

    def hook_factory(self, model: LanguageModel) -> Callable[[], Callable[[], None]]:
        """Build the hooks for a model.

        Returns:
            A call that registers them and returns another one, which removes them. Both may be
            called again and again.

        Raises:
            UserError: The model has other sizes.
        """
        hooks, fingerprint = self.checked().hooks(model, self.parts), self.fingerprint
        return lambda: register_intervention(torch_module(model), fingerprint, hooks)

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of its tensors for a file."""
        return {name: tensor.contiguous().clone() for name, tensor in self.parts.items()}

    def size(self) -> int:
        """Return the bytes of its tensors."""
        return sum(t.numel() * t.element_size() for t in self.parts.values())


def first_error(error: ValidationError) -> str:
    """Return pydantic's first error as part of a sentence: `its 'seed' is missing`."""
    first = error.errors(include_url=False)[0]
    # Where a field is a choice, pydantic lists the names of classes among the keys.
    keys = [str(key) for key in first["loc"]]
    place = visible(".".join(k for k in keys if not k[:1].isupper() and "[" not in k))[:80]
    if first["type"] == "missing":
        return f"its '{place}' is missing"
    if first["type"] == "extra_forbidden":
        return f"its '{place}' is not known"
    message = visible(first["msg"]).removeprefix("Value error, ").rstrip(".")[:200]
    return f"its '{place}': {message}" if place else message
