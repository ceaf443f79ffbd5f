"""The edit that SAEs decide: the subject's latents detect, and what they then write is solved for.

A latent of an SAE or a transcoder that reads the MLP's input is a detector learnt without labels:
its encoder row is a key, its bias a threshold. `sae_pair` looks for the few latents that together
tell the subject from all other subjects and from text, and appends to each layer, for each way in
which the subject is read, a neuron whose key lies within their encoder rows; its value is solved
for as in `gated_neuron`, the same method with an unrestricted linear discriminant for a key.
Contexts without these latents are left alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.fit_values import check_form, fit_edit
from helpers.methods.fitting.latents_needed import doublings, key
from helpers.methods.fitting.layer_selection import WIDTH, select_layers
from helpers.methods.fitting.negatives import negative_inputs, subject_inputs
from helpers.methods.fitting.sae_latents import load_saes_by_layer
from helpers.methods.fitting.units import (
    check_detected,
    concat_units,
    contrastive_sets,
)
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit
from helpers.stats.auroc import auroc_by_unit


@dataclass(frozen=True)
class SAEPairHparams(Hyperparameters):
    """Hyperparameters of `sae_pair`.

    Attributes:
        saes: Folders of SAEs or transcoders that read `mlp_in`, one a layer; those in
            `gated_neuron`'s layers for the form are used if there are any.
        n_latents: How many latents a key lies within at first; within one it is the latent's own.
        most_latents: Where the neuron does not fire well on each of the subject's own prompts
            (`ENOUGH`), twice as many are taken, up to so many.
        select: As `rank_encoder_rows`; all but `selective` are controls.
        form: `neurons` appends them; `weights` puts what they detect into the existing W_out.
        floor: Probability that the training prompts' answers come down to; by default 0.001 for
            `neurons`, and 0.004 for `weights`, which other subjects share.
        quantile: Share of everything else that stays under the threshold.
        shrink: Ridge of the discriminant within the latents, relative to the mean variance.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at the first linearisations; after them the whole.
    """

    saes: tuple[str, ...] = ()
    n_latents: int = 16
    most_latents: int = 256
    select: str = "selective"
    form: str = "neurons"
    floor: float | None = None
    quantile: float = 0.9999
    shrink: float = 0.01
    ridge: float = 0.01
    steps: tuple[float, ...] = (0.5, 0.8, 1.0, 1.0)


@method("sae_pair", family="surgery", supports_batch=True)
def sae_pair(
    model: LanguageModel, pairs: Sequence[ConceptPair], hparams: SAEPairHparams, *, seed: int = 0
) -> WeightEdit:
    """Append neurons as `gated_neuron` does, each keyed on the subject's latents.

    Args:
        model: Any model of a known family.
        pairs: What to forget; the pairs' neurons are solved for together.
        hparams: Its hyperparameters.
        seed: Draws the text, and the latents of the control.

    Returns:
        The delta; its notes name each layer's latents.

    Raises:
        UserError: No SAE is given, one reads another site or is of another model, or no latent
            tells the subject apart.
    """
    where = select_layers(model, pairs, width=WIDTH[check_form(hparams.form)])
    loaded = load_saes_by_layer(model, hparams.saes, best=where.layers)
    layers = sorted(loaded)
    how = {"layers": layers, "first": hparams.form == "neurons", "every": where.every}
    mine = subject_inputs(model, pairs, **how)
    found, chosen = {}, []
    for i, others in negative_inputs(model, pairs, layers=layers, seed=seed):
        units = []
        for seen in contrastive_sets(mine, others, i):
            unit, latents, pre, w = key(
                loaded[i],
                seen,
                sizes=doublings(hparams.n_latents, hparams.most_latents),
                select=hparams.select,
                shrink=hparams.shrink,
                quantile=hparams.quantile,
                seed=seed,
            )
            units.append(replace(unit, pair=(seen.pair,)))
            chosen.append(
                {
                    "subject": pairs[seen.pair].subject,
                    "spelling": seen.spelling,
                    "layer": i,
                    "latents": latents.tolist(),
                    "auroc": [round(s, 4) for s in auroc_by_unit(*pre).tolist()],
                    "weights": [round(x, 4) for x in (w / w.abs().max()).tolist()],
                }
            )
        found[i] = concat_units(units)
    check_detected(found, pairs)
    return fit_edit(
        model,
        pairs,
        found,
        form=hparams.form,
        floor=hparams.floor,
        ridge=hparams.ridge,
        steps=hparams.steps,
        seed=seed,
        notes={"latents": chosen},
    )
