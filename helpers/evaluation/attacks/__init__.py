"""Attempts to get forgotten knowledge back, each with its budget, its curve and its control."""

import importlib
import pkgutil

from helpers.evaluation.attacks.quantisation import quantised, rounded
from helpers.evaluation.attacks.registry import (
    ATTACKS,
    Attack,
    AttackNotApplicableError,
    attack,
    control_facts,
)

for _found in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_found.name)

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackNotApplicableError",
    "attack",
    "control_facts",
    "quantised",
    "rounded",
]
