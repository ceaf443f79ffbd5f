"""New neurons that detect the subject and write what cancels the answer.

A linear edit of W_out can only weigh the subject's key; a neuron can *detect* the subject. Its key
is the linear discriminant between the subject's last token and two kinds of negatives: the same
prompts about all other subjects, and ordinary text. (If the last token does not carry the fact
alone, every token of the subject has a key.) Its threshold lies above the negatives, so the edit
leaves them as they are. The values are the smallest that make the answer unlikely and preserve the
subject's other facts. T-Patcher (Huang et al. 2023) and CaliNet (Dong et al. 2022) append neurons
for single facts as well, trained by gradient descent; GRACE (Hartvigsen et al. 2023) keeps keys
with a radius in a codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.methods.fitting.fit_values import fit_edit
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.layer_selection import select_layers
from helpers.methods.fitting.negatives import negative_inputs, subject_inputs
from helpers.methods.fitting.units import (
    GatedUnits,
    check_detected,
    concat_units,
    contrastive_sets,
    discriminant,
    fit_unit,
)
from helpers.methods.registry import method
from helpers.methods.weight_edit import WeightEdit


@dataclass(frozen=True)
class GatedNeuronHparams(UnitEditHparams):
    """Hyperparameters of `gated_neuron`, with those of all gated units.

    Attributes:
        layers: Edited layers; by default those right below the extraction layer (`select_layers`).
            Earlier layers carry everything that is known of the subject, so its other facts would
            suffer with the one that is forgotten.
    """

    layers: tuple[int, ...] | None = None


@method("gated_neuron", family="surgery", takes=("pair", "pairs"))
def gated_neuron(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: GatedNeuronHparams,
    *,
    seed: int = 0,
) -> WeightEdit:
    """Append one gated unit to each layer for each tokenization of a subject.

    A unit is two neurons: the second cancels the growth of the first above the saturation.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget; their values are fitted together.
        hparams: Its hyperparameters.
        seed: Seed that draws the text.

    Raises:
        UserError: A subject is not detected, or two prompts cannot be told apart.
    """
    site = select_layers(model, pairs, hparams)
    units = fit_discriminant_units(
        model,
        pairs,
        hparams,
        layers=site.layers if hparams.layers is None else hparams.layers,
        all_subject_tokens=site.all_subject_tokens,
        seed=seed,
    )
    return fit_edit(model, pairs, units, hparams, seed=seed)


def fit_discriminant_units(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    hparams: UnitEditHparams,
    *,
    layers: Sequence[int],
    all_subject_tokens: bool = False,
    seed: int,
) -> dict[int, GatedUnits]:
    """Fit one unit along the linear discriminant for each layer, pair and tokenization.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget.
        hparams: Hyperparameters of the units.
        layers: Layers that get units.
        all_subject_tokens: Fit units to every token of the subject.
        seed: Seed that draws the text.

    Raises:
        UserError: A subject is detected in no layer.
    """
    inputs = subject_inputs(
        model,
        pairs,
        layers=layers,
        include_subject_initial=hparams.appends,
        all_subject_tokens=all_subject_tokens,
    )
    units = {}
    for i, negatives in negative_inputs(model, pairs, hparams, layers=layers, seed=seed):
        layer_units = []
        for data in contrastive_sets(inputs, negatives, i):
            e = discriminant(data.mean_difference(), data.cov, shrinkage=hparams.shrinkage)
            layer_units.append(fit_unit(e, data, hparams))
        units[i] = concat_units(layer_units)
    check_detected(units, pairs)
    return units
