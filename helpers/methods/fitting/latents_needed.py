"""Number of latents that a unit needs: chosen latents against random ones."""

from collections.abc import Sequence

import pandas as pd
from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.layer_selection import select_layers
from helpers.methods.fitting.negatives import negative_inputs, subject_inputs
from helpers.methods.fitting.sae_keys import SELECTION_RULES, doubling_sizes, fit_key
from helpers.methods.fitting.sae_latents import load_saes_by_layer
from helpers.methods.fitting.units import contrastive_sets


def n_latents_needed(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    saes: Sequence[str],
    *,
    hparams: UnitEditHparams,
    max_latents: int,
    min_activation: float,
    seed: int = 0,
) -> pd.DataFrame:
    """Count the latents with which a unit detects its subject well, by each selection rule.

    Args:
        model: Any model of a known family.
        pairs: Pairs of one relation.
        saes: Folders of SAEs or transcoders that read `mlp_in`, one a layer.
        hparams: Hyperparameters of the units.
        max_latents: Largest number of latents that is tried.
        min_activation: Least margin on a positive, relative to the mean margin, that counts as well
            detected.
        seed: Seed that draws text and random latents.

    Returns:
        One row per subject, layer, token_variant and rule (`select`, one of `SELECTION_RULES`):
        n_latents (1, 2, 4, ... or `max_latents`) and recall (share of the subject's prompts that
        the unit then detects).
    """
    site = select_layers(model, pairs, hparams)
    sae_by_layer = load_saes_by_layer(model, saes, preferred_layers=site.layers)
    layers, rows = sorted(sae_by_layer), []
    sizes = doubling_sizes(1, max_latents)
    for pair in pairs:
        inputs = subject_inputs(
            model, [pair], layers=layers, all_subject_tokens=site.all_subject_tokens
        )
        for i, negatives in negative_inputs(model, [pair], hparams, layers=layers, seed=seed):
            for data in contrastive_sets(inputs, negatives, i):
                for select in SELECTION_RULES:
                    key = fit_key(
                        sae_by_layer[i],
                        data,
                        hparams,
                        sizes=sizes,
                        select=select,
                        min_activation=min_activation,
                        seed=seed,
                    )
                    rows.append(
                        {
                            "subject": pair.subject,
                            "layer": i,
                            "token_variant": data.token_variant,
                            "select": select,
                            "n_latents": len(key.latents),
                            "recall": float(key.unit.recall),
                        }
                    )
    return pd.DataFrame(rows)
