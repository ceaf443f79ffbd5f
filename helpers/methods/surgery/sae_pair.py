"""Gated units whose keys come from SAEs: the subject's latents detect it, fitted values cancel it.

A latent of an SAE or a transcoder that reads the MLP's input detects a feature without labels: its
encoder row is a key, its bias a threshold. `sae_pair` searches for the few latents that together
tell the subject from all other subjects and from text. Each layer gets one unit for each
tokenization of the subject, with a key in the span of these latents' encoder rows. The values are
fitted as in `gated_neuron`, which is the same method with an unrestricted linear discriminant as
its key. Contexts without these latents stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.fit_values import fit_edit
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.layer_selection import select_layers
from helpers.methods.fitting.negatives import (
    distinct_subjects,
    negative_inputs,
    subject_inputs,
)
from helpers.methods.fitting.sae_keys import SAEKey, doubling_sizes, fit_key
from helpers.methods.fitting.sae_latents import INPUT_SITE, load_saes_by_layer
from helpers.methods.fitting.units import (
    ContrastiveSet,
    check_detected,
    concat_units,
    contrastive_sets,
)
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightEdit


@dataclass(frozen=True)
class SAEPairHparams(UnitEditHparams):
    """Hyperparameters of `sae_pair`, with those of all gated units.

    Attributes:
        saes: Folders of SAEs or transcoders that read `mlp_in`, one a layer; those in the layers
            that `gated_neuron` would edit are used if there are any.
        n_latents: Number of latents in whose span a key lies at first; with one it is the latent's
            own encoder row.
        max_latents: The number is doubled up to this one, until the unit detects each of the
            subject's prompts well.
        min_activation: Least margin on a positive, relative to the mean margin, that counts as well
            detected.
        select: Rule that chooses latents (`rank_encoder_rows`): `selective`, or the controls
            `random` and `untrained`.
    """

    RENAMED: ClassVar = {**UnitEditHparams.RENAMED, "most_latents": "max_latents"}

    saes: tuple[str, ...] = ()
    n_latents: int = 16
    max_latents: int = 256
    min_activation: float = 0.5
    select: str = "selective"


@method("sae_pair", family="surgery", takes=("pair", "pairs"), sae_sites=(INPUT_SITE,))
def sae_pair(
    model: LanguageModel, pairs: Sequence[ConceptPair], hparams: SAEPairHparams, *, seed: int = 0
) -> WeightEdit:
    """Append units as `gated_neuron` does, each with a key in the span of the subject's latents.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget; their values are fitted together.
        hparams: Its hyperparameters.
        seed: Seed that draws the text, and the latents of the control `random`.

    Returns:
        The edit; its notes name each layer's latents.

    Raises:
        UserError: No SAE is given, one reads another site or is of another model, or no latent
            tells the subject apart.
    """
    site = select_layers(model, pairs, hparams)
    sae_by_layer = load_saes_by_layer(model, hparams.saes, preferred_layers=site.layers)
    layers = sorted(sae_by_layer)
    inputs = subject_inputs(
        model,
        pairs,
        layers=layers,
        include_subject_initial=hparams.appends,
        all_subject_tokens=site.all_subject_tokens,
    )
    units, latent_notes, subjects = {}, [], distinct_subjects(pairs)
    for i, negatives in negative_inputs(model, pairs, hparams, layers=layers, seed=seed):
        layer_units = []
        for data in contrastive_sets(inputs, negatives, i):
            key = fit_key(
                sae_by_layer[i],
                data,
                hparams,
                sizes=doubling_sizes(hparams.n_latents, hparams.max_latents),
                select=hparams.select,
                min_activation=hparams.min_activation,
                seed=seed,
            )
            layer_units.append(key.unit)
            latent_notes.append(_latent_note(key, data, i, subjects[data.subject]))
        units[i] = concat_units(layer_units)
    check_detected(units, pairs)
    return fit_edit(model, pairs, units, hparams, seed=seed, notes={"latents": latent_notes})


def _latent_note(key: SAEKey, data: ContrastiveSet, layer: int, subject: str) -> dict[str, Any]:
    """Describe the latents of a key; their weights are relative to the largest."""
    relative_weights = key.weights / key.weights.abs().max()
    return {
        "subject": subject,
        "token_variant": data.token_variant,
        "layer": layer,
        "latents": key.latents.tolist(),
        "auroc": [round(x, 4) for x in key.auroc.tolist()],
        "weights": [round(x, 4) for x in relative_weights.tolist()],
    }
