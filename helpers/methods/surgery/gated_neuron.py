"""Neurons that detect the subject and write what cancels the answer.

A linear edit of W_out can only weigh the subject's key; a neuron can *detect* it. Its key is the
linear discriminant of the subject's last token (of every one, where the last does not carry the
fact alone) against the same questions about all other subjects
and ordinary text, its threshold lies above what those reach, and the values are solved for: the
least that makes the answer unlikely and leaves the subject's other facts where they are. What does
not fire cannot be hurt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.fit_values import check_form, fit_edit
from helpers.methods.fitting.layer_selection import WIDTH, select_layers
from helpers.methods.fitting.negatives import negative_inputs, subject_inputs
from helpers.methods.fitting.units import (
    GatedUnits,
    check_detected,
    concat_units,
    contrastive_sets,
    discriminant,
    fit_unit,
)
from helpers.methods.registry import Hyperparameters, method
from helpers.methods.weight_edit import WeightEdit


@dataclass(frozen=True)
class GatedNeuronHparams(Hyperparameters):
    """Hyperparameters of `gated_neuron`.

    Attributes:
        layers: Which layers get a neuron; by default those right below where the answer leaves
            the subject's tokens (`select_layers`), `WIDTH` of them. Earlier ones carry all that is known
            of the subject, and its other facts suffer with the one that goes.
        form: `neurons` appends them; `weights` puts what they detect into the existing W_out.
        floor: Probability that the training prompts' answers come down to; by default 0.001 for
            `neurons`, and 0.004 for `weights`, which other subjects share.
        quantile: Share of everything else that stays under the threshold.
        shrink: Ridge of the discriminant, relative to the mean variance.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at the first linearisations; after them the whole.
    """

    layers: tuple[int, ...] | None = None
    form: str = "neurons"
    floor: float | None = None
    quantile: float = 0.9999
    shrink: float = 0.01
    ridge: float = 0.01
    steps: tuple[float, ...] = (0.5, 0.8, 1.0, 1.0)


@method("gated_neuron", family="surgery", supports_batch=True)
def gated_neuron(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: GatedNeuronHparams,
    *,
    seed: int = 0,
) -> WeightEdit:
    """Append to each layer a detector for each way in which a subject is read (`subject_inputs`).

    As neurons a detector is two: the second takes away what the first has above the ceiling.

    Args:
        model: Any model of a known family.
        pairs: What to forget; the pairs' neurons are solved for together.
        hparams: Its hyperparameters.
        seed: Draws the text.

    Raises:
        UserError: There is no such form, or two prompts cannot be told apart.
    """
    where = select_layers(model, pairs, width=WIDTH[check_form(hparams.form)])
    detectors = fit_detectors(
        model,
        pairs,
        layers=where.layers if hparams.layers is None else hparams.layers,
        quantile=hparams.quantile,
        shrink=hparams.shrink,
        seed=seed,
        first=hparams.form == "neurons",
        every=where.every,
    )
    return fit_edit(
        model,
        pairs,
        detectors,
        form=hparams.form,
        floor=hparams.floor,
        ridge=hparams.ridge,
        steps=hparams.steps,
        seed=seed,
    )


def fit_detectors(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    layers: Sequence[int],
    quantile: float,
    shrink: float,
    seed: int,
    first: bool = False,
    every: bool = False,
) -> dict[int, GatedUnits]:
    """For each layer, pair and way in which its subject ends a neuron along the discriminant.

    Args and errors are those of `gated_neuron`; `first` and `every` as `subject_inputs`.
    """
    mine = subject_inputs(model, pairs, layers=layers, first=first, every=every)
    found = {}
    for i, others in negative_inputs(model, pairs, layers=layers, seed=seed):
        units = []
        for seen in contrastive_sets(mine, others, i):
            e = discriminant(seen.inside.mean(0) - seen.mean, seen.cov, shrink=shrink)
            unit = fit_unit(e, seen.inside, seen.outside, quantile=quantile)
            units.append(replace(unit, pair=(seen.pair,)))
        found[i] = concat_units(units)
    check_detected(found, pairs)
    return found
