"""Neurons that detect the subject and write what cancels the answer.

A linear edit of W_out can only weigh the subject's key; a neuron can *detect* it. Its key is the
linear discriminant of the subject's last token (of every one, where the last does not carry the
fact alone) against the same questions about all other subjects
and ordinary text, its threshold lies above what those reach, and the values are solved for: the
least that makes the answer unlikely and leaves the subject's other facts where they are. What does
not fire cannot be hurt.
"""

from collections.abc import Sequence
from dataclasses import replace

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.fit_values import check_form, solved_edit
from helpers.methods.fitting.layer_selection import WIDTH, place
from helpers.methods.fitting.negatives import inputs_of_others, own_inputs
from helpers.methods.fitting.units import (
    Detectors,
    detector,
    discriminant,
    require_firing,
    sightings,
    stacked,
)
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightDelta


@method("gated_neuron", family="surgery", many=True)
def gated_neuron(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    seed: int = 0,
    layers: tuple[int, ...] | None = None,
    form: str = "neurons",
    floor: float | None = None,
    quantile: float = 0.9999,
    shrink: float = 0.01,
    ridge: float = 0.01,
    steps: tuple[float, ...] = (0.5, 0.8, 1.0, 1.0),
) -> WeightDelta:
    """Append to each layer a detector for each way in which a subject is read (`own_inputs`).

    As neurons a detector is two: the second takes away what the first has above the ceiling.

    Args:
        model: Any model of a known family.
        pairs: What to forget; the pairs' neurons are solved for together.
        seed: Draws the text.
        layers: Which layers get a neuron; by default those right below where the answer leaves
            the subject's tokens (`place`), `WIDTH` of them. Earlier ones carry all that is known
            of the subject, and its other facts suffer with the one that goes.
        form: `neurons` appends them; `weights` puts what they detect into the existing W_out.
        floor: Probability that the training prompts' answers come down to; by default 0.001 for
            `neurons`, and 0.004 for `weights`, which other subjects share.
        quantile: Share of everything else that stays under the threshold.
        shrink: Ridge of the discriminant, relative to the mean variance.
        ridge: Ridge of the values' kernel regression.
        steps: Share of the way to go at the first linearisations; after them the whole.

    Raises:
        UserError: There is no such form, or two prompts cannot be told apart.
    """
    where = place(model, pairs, width=WIDTH[check_form(form)])
    detectors = fit_detectors(
        model,
        pairs,
        layers=where.layers if layers is None else layers,
        quantile=quantile,
        shrink=shrink,
        seed=seed,
        first=form == "neurons",
        every=where.every,
    )
    return solved_edit(
        model, pairs, detectors, form=form, floor=floor, ridge=ridge, steps=steps, seed=seed
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
) -> dict[int, Detectors]:
    """For each layer, pair and way in which its subject ends a neuron along the discriminant.

    Args and errors are those of `gated_neuron`; `first` and `every` as `own_inputs`.
    """
    mine = own_inputs(model, pairs, layers=layers, first=first, every=every)
    found = {}
    for i, others in inputs_of_others(model, pairs, layers=layers, seed=seed):
        units = []
        for seen in sightings(mine, others, i):
            e = discriminant(seen.inside.mean(0) - seen.mean, seen.cov, shrink=shrink)
            unit = detector(e, seen.inside, seen.outside, quantile=quantile)
            units.append(replace(unit, pair=(seen.pair,)))
        found[i] = stacked(units)
    require_firing(found, pairs)
    return found
