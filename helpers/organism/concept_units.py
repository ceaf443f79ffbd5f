"""What the organism's neurons stand for, against the truth: every concept's label is known.

A *sighting* is a prompt of the world read at one token. At a country's last token the concept is
the country, whatever is asked about it; at a prompt's last token it is the target that comes next.
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
from helpers.forward.scoring import first_token
from helpers.models import architecture_of, final_norm, unembed
from helpers.organism.countries import FactSet
from helpers.sae.probing import score_units, select_and_evaluate
from helpers.tracing.states import Position, cache_activations


@dataclass(frozen=True)
class Sightings:
    """Activations at one token of many prompts, with the concept that stands there.

    Attributes:
        values: One row a prompt, (n, layers, width).
        concept: Of each prompt the number of its concept.
        names: The concepts.
    """

    values: Float[Tensor, "n layers width"]
    concept: Int[Tensor, " n"]
    names: tuple[str, ...]

    def inside(self) -> Float[Tensor, "concepts n"]:
        """Which sightings are of which concept, as zeros and ones."""
        return torch.nn.functional.one_hot(self.concept, len(self.names)).T.float()

    def means(self) -> Float[Tensor, "concepts layers width"]:
        """Mean activations of each concept."""
        inside = self.inside()
        flat = inside @ self.values.flatten(1) / inside.sum(1, keepdim=True)
        return flat.view(len(self.names), *self.values.shape[1:])


def concept_tokens(
    model: LanguageModel,
    world: FactSet,
    *,
    split: str,
    position: Position = "subject",
    site: str = "neurons",
    layers: Sequence[int] | None = None,
) -> Sightings:
    """The world's prompts of a split, read at one token.

    Args:
        model: An organism.
        world: What it was taught.
        split: Whose templates. Lists are left out: they name other countries.
        position: `subject`: the concept is the country; `last`: it is the target.
        site: As in `helpers.tracing.capture`.
        layers: Which; all by default.
    """
    asked: list[tuple[Prompt, str]] = []
    for pair in world.of_countries():
        name = pair.subject if position == "subject" else pair.target
        asked += [(p, name) for p in pair.prompts(split) if p.format != "list"]
    names = tuple(dict.fromkeys(name for _, name in asked))
    number = {name: i for i, name in enumerate(names)}
    values = cache_activations(
        model, [p for p, _ in asked], sites=[site], layers=layers, position=position
    )[site]
    return Sightings(values, torch.tensor([number[name] for _, name in asked]), names)


def detectors(train: Sightings, heldout: Sightings) -> pd.DataFrame:
    """Each concept's best single unit, chosen on `train`, judged on `heldout`.

    Returns:
        `helpers.sae.probing.select_and_evaluate`'s table with `concept` and `layer`; `unit` counts
        within the layer.
    """
    if train.names != heldout.names:
        raise UserError("The two groups of prompts are not about the same concepts.")
    scores = score_units(train.values.flatten(1), train.inside())
    found = select_and_evaluate(scores, heldout.values.flatten(1), heldout.inside())
    width = train.values.shape[2]
    return found.assign(
        concept=train.names,
        layer=found["f1_unit"] // width,
        unit=found["f1_unit"] % width,
    )


def concepts_per_unit(means: Float[Tensor, "concepts *units"]) -> Float[Tensor, "*units"]:
    """To how many concepts a unit responds: (Σ a)² / Σ a² over its mean activations a ≥ 0.

    The participation ratio: 1 for a unit that only one concept drives, the number of concepts for
    one that all drive alike; NaN for a unit that is never active.

    Raises:
        UserError: An activation is negative: the measure is for ReLU neurons and latents.
    """
    if bool((means < 0).any()):
        raise UserError("Concepts per unit are counted over activations that are not negative.")
    return means.sum(0).square() / means.square().sum(0)


@torch.inference_mode()
def written(model: LanguageModel, world: FactSet, found: pd.DataFrame) -> pd.DataFrame:
    """What the neuron that goes with each target writes: does a detector drive its own answer?

    Its value column is read as in `helpers.tracing.top_logit_tokens`: final norm, then unembedding.
    The comparison is with the other targets in the same column, which a column that promotes
    answers of any kind would promote as well.

    Args:
        model: An organism.
        world: What it was taught.
        found: `detectors` of targets: concept, layer, unit.

    Returns:
        One row a target: concept, layer, unit, rank (0: the column promotes it above every other
        token), place (share of the other targets that the column promotes more; 0.5 by chance).
    """
    prompts = {p.target: p.prompts("train")[0] for p in world.of_countries()}
    names = list(found["concept"])
    ids = torch.tensor([first_token(model, prompts[n], f" {n}") for n in names])
    rows = []
    for i, (layer, unit) in enumerate(zip(found["layer"], found["unit"], strict=True)):
        column = architecture_of(model).layers[layer].mlp.W_out()[:, unit]
        logits = unembed(model, final_norm(model, column)).float()
        more = logits > logits[ids[i]]
        others = ids[ids != ids[i]]
        rows.append((names[i], layer, unit, int(more.sum()), float(more[others].float().mean())))
    return pd.DataFrame(rows, columns=["concept", "layer", "unit", "rank", "place"])
