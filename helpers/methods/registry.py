"""The register of methods, and what every method's hyperparameters share."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.hook_intervention import Intervention
from helpers.methods.weight_edit import WeightDelta

# Names that hyperparameters had until 2026-11, with the values that were named otherwise: saved
# edits and tuned settings have them, and calls may.
RENAMED: dict[str, str] = {}
RENAMED_VALUES: dict[tuple[str, Any], Any] = {}


@dataclass(frozen=True)
class Hyperparameters:
    """Base of a method's hyperparameters: every number that decides its result, as a field."""


@dataclass(frozen=True)
class Method:
    """An entry of the register.

    Attributes:
        name: What users call it.
        family: `surgery`, `training`, `inference` or `control`.
        function: (model, pair, hparams, *, seed) → WeightDelta or Intervention; with
            `supports_batch` it takes a list of pairs.
        hparams: The class of its hyperparameters.
        supports_batch: It solves for several pairs at once.
    """

    name: str
    family: str
    function: Callable[..., WeightDelta | Intervention]
    hparams: type[Hyperparameters]
    supports_batch: bool = False

    def make(
        self, model: LanguageModel, pairs: Sequence[ConceptPair], *, seed: int, **given: Any
    ) -> WeightDelta | Intervention:
        """Call the function on pairs, one unless it takes several."""
        pair = list(pairs) if self.supports_batch else pairs[0]
        return self.function(model, pair, self.hparams(**given), seed=seed)

    def hyperparameters(self) -> dict[str, Any]:
        """Names and defaults of its hyperparameters."""
        defaults = self.hparams()
        return {f.name: getattr(defaults, f.name) for f in fields(defaults)}


METHODS: dict[str, Method] = {}


def method(name: str, *, family: str, supports_batch: bool = False) -> Callable:
    """Register a function as the method `name`.

    The annotation of the function's parameter `hparams` is the class of its hyperparameters.

    Args:
        name: What users call it.
        family: `surgery`, `training`, `inference` or `control`.
        supports_batch: The function takes a list of pairs.

    Raises:
        ValueError: There is a method of that name.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in METHODS:
            raise ValueError(f"There are two methods '{name}': name one of them otherwise.")
        hparams = inspect.signature(function).parameters["hparams"].annotation
        METHODS[name] = Method(name, family, function, hparams, supports_batch)
        return function

    return register


def current_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Rename hyperparameters, and values, that older files and calls name otherwise."""
    renamed = {RENAMED.get(name, name): value for name, value in given.items()}
    return {
        name: RENAMED_VALUES.get((name, value), value) if isinstance(value, str) else value
        for name, value in renamed.items()
    }
