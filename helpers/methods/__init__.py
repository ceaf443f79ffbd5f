"""Methods of unlearning: one file each in `surgery`, `training`, `inference` and `controls`.

Importing the package imports those files, which register their methods in `METHODS`.
"""

import importlib
import pkgutil

from helpers.methods.change import Change
from helpers.methods.edit import Edit
from helpers.methods.edit_stack import active_edits, base_model
from helpers.methods.export import save_pretrained_widened
from helpers.methods.hook_intervention import HookIntervention
from helpers.methods.merge import merge_edits
from helpers.methods.registry import METHODS, method
from helpers.methods.restored_fact import without_fact
from helpers.methods.unlearning import load_unlearning, unlearn
from helpers.methods.weight_edit import WeightEdit

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

Unlearning, WeightDelta, Intervention = Edit, WeightEdit, HookIntervention  # names until 2026-11

__all__ = [
    "METHODS",
    "Change",
    "Edit",
    "HookIntervention",
    "Intervention",
    "Unlearning",
    "WeightDelta",
    "WeightEdit",
    "active_edits",
    "base_model",
    "load_unlearning",
    "merge_edits",
    "method",
    "save_pretrained_widened",
    "unlearn",
    "without_fact",
]
