"""Ways to unlearn: each is one file of `surgery`, `training` or `inference`, found by itself."""

import importlib
import pkgutil

from helpers.methods.change import Change
from helpers.methods.edit import Edit, active_edits, base_model
from helpers.methods.export import save_pretrained_widened
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.merge import merge_edits
from helpers.methods.registry import METHODS, method
from helpers.methods.unlearning import load_unlearning, unlearn
from helpers.methods.weight_edit import WeightEdit

for _found in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_found.name)

__all__ = [
    "METHODS",
    "Change",
    "Intervention",
    "Unlearning",
    "WeightDelta",
    "active_edits",
    "load_unlearning",
    "merge_edits",
    "method",
    "original",
    "save_widened",
    "unlearn",
]
