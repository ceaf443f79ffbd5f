"""The register of methods."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.hook_intervention import Intervention
from helpers.methods.weight_edit import WeightDelta


@dataclass(frozen=True)
class Method:
    """An entry of the register.

    Attributes:
        name: What users call it.
        family: `surgery`, `training`, `inference` or `control`.
        function: (model, pair, *, seed, hyperparameters) → WeightDelta or Intervention.
        many: The function takes a list of pairs instead, and solves for all of them at once.
    """

    name: str
    family: str
    function: Callable[..., WeightDelta | Intervention]
    many: bool = False

    def make(
        self, model: LanguageModel, pairs: Sequence[ConceptPair], *, seed: int, **how: Any
    ) -> WeightDelta | Intervention:
        """Call the function on pairs, one unless it takes many."""
        return self.function(model, list(pairs) if self.many else pairs[0], seed=seed, **how)

    def hyperparameters(self) -> dict[str, Any]:
        """Names and defaults of its hyperparameters."""
        parameters = inspect.signature(self.function).parameters.values()
        return {
            p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"
        }


METHODS: dict[str, Method] = {}


def method(name: str, *, family: str, many: bool = False) -> Callable:
    """Register a function as the method `name`; `many` if it takes a list of pairs."""

    def register(function: Callable[..., WeightDelta]) -> Callable[..., WeightDelta]:
        METHODS[name] = Method(name, family, function, many)
        return function

    return register
