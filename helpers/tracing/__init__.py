"""Where a fact lives and how it travels, by nnsight interventions on any family of models.

`states` reads activations, `patching` changes them and sees what moves, `attribution` splits an
answer's logit over what wrote it, `neurons` looks at single keys and values.
"""

from helpers.forward.sites import SITES
from helpers.tracing.attribution import direct_logit_attribution, head_attribution, logit_lens
from helpers.tracing.neurons import neuron_activations, selectivity, target_ranks, top_logit_tokens
from helpers.tracing.over_facts import clean_corrupted_pairs, patching_over_facts
from helpers.tracing.patching import (
    Patch,
    ablation,
    activation_patching,
    logit_difference,
    path_patching,
    run_patched,
)
from helpers.tracing.states import cache_activations, position_of
from helpers.tracing.text_activations import TextActivations, precision, text_activations

__all__ = [
    "SITES",
    "Patch",
    "TextActivations",
    "ablation",
    "activation_patching",
    "cache_activations",
    "clean_corrupted_pairs",
    "direct_logit_attribution",
    "head_attribution",
    "logit_difference",
    "logit_lens",
    "neuron_activations",
    "patching_over_facts",
    "path_patching",
    "position_of",
    "precision",
    "run_patched",
    "selectivity",
    "target_ranks",
    "text_activations",
    "top_logit_tokens",
]
