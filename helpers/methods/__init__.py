"""Ways to unlearn: each is one file of `surgery`, `training` or `inference`, found by itself."""

import importlib
import pkgutil

from helpers.methods.compose import composed
from helpers.methods.delta import Change, WeightDelta
from helpers.methods.intervention import Intervention
from helpers.methods.protocol import (
    METHODS,
    Unlearning,
    applied_to,
    load_unlearning,
    method,
    original,
    unlearn,
)
from helpers.methods.widened import save_widened

for _found in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_found.name)

__all__ = [
    "METHODS",
    "Change",
    "Intervention",
    "Unlearning",
    "WeightDelta",
    "applied_to",
    "composed",
    "load_unlearning",
    "method",
    "original",
    "save_widened",
    "unlearn",
]
