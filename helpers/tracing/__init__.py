"""Trace where a fact is stored and how it travels, in any family of models.

`patching` changes activations and measures the effect, `over_facts` averages it over facts,
`attribution` splits an answer's logit over the parts that wrote it, `neurons` reads what single
value columns write, and `text_activations` finds where neurons are active in running text.
"""

from helpers.forward.activations import cache_activations, stack_layers
from helpers.forward.prompts import position_of
from helpers.forward.sites import SITES
from helpers.tracing.attribution import direct_logit_attribution, head_attribution, logit_lens
from helpers.tracing.neurons import target_ranks, top_logit_tokens
from helpers.tracing.over_facts import clean_corrupted_pairs, patching_over_facts
from helpers.tracing.patching import (
    Patch,
    ablation,
    activation_patching,
    logit_difference,
    path_patching,
    run_patched,
)
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
    "patching_over_facts",
    "path_patching",
    "position_of",
    "precision",
    "run_patched",
    "stack_layers",
    "target_ranks",
    "text_activations",
    "top_logit_tokens",
]
