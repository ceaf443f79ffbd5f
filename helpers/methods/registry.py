"""The registry of methods, and the base class of their hyperparameters."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.weight_edit import WeightEdit
from helpers.requests import TextRequest

# Values of hyperparameters that were named otherwise until 2026-11: saved edits and tuned settings
# have them, and calls may. Old names of the hyperparameters are in the `RENAMED` of each class.
RENAMED_VALUES: dict[tuple[str, Any], Any] = {
    ("parametrization", "neurons"): "append",
    ("parametrization", "weights"): "low_rank",
}


@dataclass(frozen=True)
class Hyperparameters:
    """Base of a method's hyperparameters: every number that decides its result, as a field."""

    RENAMED: ClassVar[Mapping[str, str]] = {}  # old name → field, of this class's methods alone

    @classmethod
    def current_names(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Rename hyperparameters, and values, that older files and calls name otherwise.

        Args:
            given: Name → value; a name that is a field keeps it.

        Returns:
            The same with today's names; names that are none of the class's stay as they are.
        """
        names = {field.name for field in fields(cls)}
        old_names = cls.RENAMED
        renamed = {}
        for name, value in given.items():
            new_name = old_names.get(name)
            renamed[new_name if name not in names and new_name in names else name] = value
        return {
            name: RENAMED_VALUES.get((name, value), value) if isinstance(value, str) else value
            for name, value in renamed.items()
        }


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        name: The name by which users choose it.
        family: `surgery`, `training`, `inference` or `control`.
        function: (model, request, hparams, *, seed) → WeightEdit or HookIntervention. `takes`
            tells what it is called with: a `ConceptPair`, or a list of them if it takes several, or
            a `TextRequest`.
        hparams: The class of its hyperparameters.
        takes: The forms of request that it takes, of `FORMS`.
        sae_sites: Sites of the SAEs that it reads; empty for methods without SAEs.
    """

    name: str
    family: str
    function: Callable[..., WeightEdit | HookIntervention]
    hparams: type[Hyperparameters]
    takes: tuple[str, ...] = ("pair",)
    sae_sites: tuple[str, ...] = ()

    @property
    def supports_batch(self) -> bool:
        """Tell whether the method solves for several pairs at once."""
        return "pairs" in self.takes

    def make(
        self,
        model: LanguageModel,
        request: Sequence[ConceptPair] | TextRequest,
        /,
        *,
        seed: int,
        **given: Any,
    ) -> WeightEdit | HookIntervention:
        """Call the function on a text, on the first pair, or on all pairs if it supports a batch.

        Args:
            model: The model that the edit is made on.
            request: What to forget.
            seed: Seed of everything random.
            **given: Hyperparameters that differ from their defaults.
        """
        if isinstance(request, TextRequest) or self.supports_batch:
            return self.function(model, request, self.hparams(**given), seed=seed)
        return self.function(model, request[0], self.hparams(**given), seed=seed)

    def hyperparameters(self) -> dict[str, Any]:
        """Return names and defaults of the hyperparameters."""
        defaults = self.hparams()
        return {f.name: getattr(defaults, f.name) for f in fields(defaults)}


METHODS: dict[str, Method] = {}
FORMS = {"pair": "one pair", "pairs": "several pairs", "text": "text"}  # of requests


def method(
    name: str, *, family: str, takes: Sequence[str] = ("pair",), sae_sites: Sequence[str] = ()
) -> Callable:
    """Register a function as the method `name`.

    The annotation of the function's parameter `hparams` is the class of its hyperparameters.

    Args:
        name: The name by which users choose it.
        family: `surgery`, `training`, `inference` or `control`.
        takes: The forms of request that it takes, of `FORMS`.
        sae_sites: Sites of the SAEs that it reads.

    Raises:
        ValueError: There is a method of that name.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hparams = inspect.signature(function).parameters["hparams"].annotation
        add_method(Method(name, family, function, hparams, tuple(takes), tuple(sae_sites)))
        return function

    return register


def add_method(entry: Method) -> None:
    """Add an entry to the registry.

    Raises:
        ValueError: There is a method of that name.
    """
    if entry.name in METHODS:
        raise ValueError(f"There are two methods '{entry.name}': name one of them otherwise.")
    METHODS[entry.name] = entry


def methods_that_take(form: str) -> list[str]:
    """List the methods that take a form of request."""
    return [name for name, entry in METHODS.items() if form in entry.takes]
