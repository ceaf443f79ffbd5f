"""Concepts that the organism's neurons represent, against the known label of every concept.

The activations are read at one token of each prompt. At a country's last token the concept is the
country, whatever the relation; at a prompt's last token it is the target that comes next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import Prompt
from helpers.forward.activations import Position, cache_activations, stack_layers
from helpers.forward.prompts import first_token
from helpers.models import architecture_of, final_norm, unembed
from helpers.organism.countries import FactSet
from helpers.sae.probing import score_units, select_and_evaluate


@dataclass(frozen=True)
class ConceptActivations:
    """Activations at one token of many prompts, with the concept of each.

    Attributes:
        values: One row a prompt, (n, layers, width).
        concept: Index of each prompt's concept.
        names: The concepts.
    """

    values: Float[Tensor, "n layers width"]
    concept: Int[Tensor, " n"]
    names: tuple[str, ...]

    def labels(self) -> Float[Tensor, "concepts n"]:
        """Compute 1 where a prompt is of the concept, else 0."""
        return torch.nn.functional.one_hot(self.concept, len(self.names)).T.float()

    def means(self) -> Float[Tensor, "concepts layers width"]:
        """Average the activations of each concept."""
        labels = self.labels()
        flat = labels @ self.values.flatten(1) / labels.sum(1, keepdim=True)
        return flat.view(len(self.names), *self.values.shape[1:])


def concept_activations(
    model: LanguageModel,
    fact_set: FactSet,
    *,
    split: str,
    position: Position = "subject",
    site: str = "neurons",
    layers: Sequence[int] | None = None,
) -> ConceptActivations:
    """Read activations at one token of all prompts of a split.

    Args:
        model: An organism.
        fact_set: The facts that it was trained on.
        split: Split of the templates. Lists are left out: they name other countries.
        position: `subject`: the concept is the country; `last`: it is the target.
        site: One of `helpers.tracing.SITES`.
        layers: Layers that are read, all by default.
    """
    prompts: list[tuple[Prompt, str]] = []
    for pair in fact_set.of_countries():
        name = pair.subject if position == "subject" else pair.target
        prompts += [(p, name) for p in pair.prompts(split) if p.format != "list"]
    names = tuple(dict.fromkeys(name for _, name in prompts))
    index = {name: i for i, name in enumerate(names)}
    activations = cache_activations(
        model, [p for p, _ in prompts], sites=[site], layers=layers, positions=position
    )
    values = stack_layers(activations, site)
    return ConceptActivations(values, torch.tensor([index[name] for _, name in prompts]), names)


def best_units(train: ConceptActivations, heldout: ConceptActivations) -> pd.DataFrame:
    """Select each concept's best single unit on training prompts; evaluate it on held-out ones.

    Args:
        train: Activations on training prompts.
        heldout: Activations on held-out prompts, of the same concepts.

    Returns:
        The table of `helpers.sae.probing.select_and_evaluate` with `concept` and `layer`; `unit` is
        the index within the layer.

    Raises:
        UserError: The concepts are not the same.
    """
    if train.names != heldout.names:
        raise UserError("The two groups of prompts are not about the same concepts.")
    scores = score_units(train.values.flatten(1), train.labels())
    table = select_and_evaluate(scores, heldout.values.flatten(1), heldout.labels())
    width = train.values.shape[2]
    return table.assign(
        concept=train.names,
        layer=table["f1_unit"] // width,
        unit=table["f1_unit"] % width,
    )


def concepts_per_unit(means: Float[Tensor, "concepts *units"]) -> Float[Tensor, "*units"]:  # noqa: F821 (jaxtyping)
    """Count the concepts to which a unit responds: (Σ a)² / Σ a² over mean activations a ≥ 0.

    This is the participation ratio: 1 for a unit that only one concept drives, the number of
    concepts for one that all drive alike, NaN for a unit that is never active.

    Raises:
        UserError: An activation is negative: the measure is for ReLU neurons and latents.
    """
    if bool((means < 0).any()):
        raise UserError("Concepts per unit are counted over activations that are not negative.")
    return means.sum(0).square() / means.square().sum(0)


@torch.inference_mode()
def value_column_ranks(
    model: LanguageModel, fact_set: FactSet, units: pd.DataFrame
) -> pd.DataFrame:
    """Rank each target in the value column of its best neuron: does it promote its own answer?

    The column is read by the logit lens: final norm, then unembedding. It is compared with the
    other targets in the same column: a column that promotes answers of any kind promotes them too.

    Args:
        model: An organism.
        fact_set: The facts that it was trained on.
        units: `best_units` of targets: concept, layer, unit.

    Returns:
        One row a target: concept, layer, unit, rank (0: the column promotes it above every other
        token), place (fraction of the other targets that it promotes more; 0.5 by chance).
    """
    prompts = {p.target: p.prompts("train")[0] for p in fact_set.of_countries()}
    names = list(units["concept"])
    ids = torch.tensor([first_token(model, prompts[n], f" {n}") for n in names])
    rows = []
    for i, (layer, unit) in enumerate(zip(units["layer"], units["unit"], strict=True)):
        column = architecture_of(model).layers[layer].mlp.W_out()[:, unit]
        logits = unembed(model, final_norm(model, column)).float()
        is_above = logits > logits[ids[i]]
        others = ids[ids != ids[i]]
        rows.append(
            (names[i], layer, unit, int(is_above.sum()), float(is_above[others].float().mean()))
        )
    return pd.DataFrame(rows, columns=["concept", "layer", "unit", "rank", "place"])
