"""The hash by which caches and edits identify a model."""

import os
from concurrent.futures import ThreadPoolExecutor

from nnsight import LanguageModel

from helpers.io.hashing import content_hash
from helpers.models.hooks import active_interventions


def model_hash(model: LanguageModel) -> str:
    """Hash every parameter to 16 hexadecimal digits, which change with any bit of the weights.

    Active interventions (`helpers.models.hooks`) are hashed too.
    """
    parameters = [p for _, p in sorted(model._module.named_parameters())]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python's lock
        return content_hash(
            list(pool.map(content_hash, parameters)), *active_interventions(model._module)
        )
