"""Attempts to recover forgotten knowledge, each over its budget and compared with control facts."""

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

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackNotApplicableError",
    "attack",
    "control_facts",
    "quantised",
    "rounded",
]
