"""The subject against other subjects: prompts and activations that show what is specific to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.errors import UserError
from helpers.facts import ConceptPair, Prompt
from helpers.forward.activations import Position, cache_activations
from helpers.forward.prompts import position_of
from helpers.models import MLPArchitecture


@dataclass(frozen=True)
class Contrast:
    """Activations of one layer at one token of each prompt.

    Attributes:
        positives: Activations in prompts about the subject.
        negatives: Activations in the same prompts about other subjects.
    """

    positives: Float[Tensor, "n width"]
    negatives: Float[Tensor, "m width"]

    def difference(self) -> Float[Tensor, " width"]:
        """Compute mean positives − mean negatives."""
        return self.positives.mean(0) - self.negatives.mean(0)


def subject_prompts(pair: ConceptPair) -> list[Prompt]:
    """Return the `train` completions without those that begin with the subject.

    The first token of a text has a state of its own in most models, much larger than any other.
    """
    prompts = pair.statements("train")
    return [p for p in prompts if not str(p).startswith(p.subject)] or prompts


def other_subjects(pair: ConceptPair, n: int, *, seed: int = 0) -> list[ConceptPair]:
    """Draw `n` neighbours of the pair, with the pair's own templates.

    Args:
        pair: The pair.
        n: Number of neighbours.
        seed: Seed that draws them.

    Raises:
        UserError: The relation has no other subjects.
    """
    others = pair.neighbours(n, seed=seed)
    if not others:
        raise UserError(
            f"Only a comparison shows what is specific to {pair.subject}, and the relation "
            f"'{pair.relation}' has no other subjects: name some with other targets under "
            "'others:', use one of the Factbook's relations, or a method that needs no comparison "
            "(rome, memit, alphaedit)."
        )
    return [replace(o, templates=pair.templates) for o in others]


def contrast(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    layers: Sequence[int],
    site: str = "mlp_in",
    position: Position = "subject",
    n_subjects: int = 24,
    seed: int = 0,
) -> dict[int, Contrast]:
    """Read activations in prompts about the subject and about other subjects, at one token each.

    Args:
        model: Any model of a known family.
        pair: The pair of the subject.
        layers: Layers to read; the forward pass stops after the last.
        site: `mlp_in` (input of W_in) or `neurons` (input of W_out).
        position: The subject's last token (`subject`) or the prompt's (`last`).
        n_subjects: Number of other subjects.
        seed: Seed that draws them.

    Raises:
        UserError: The relation has no other subjects.
    """
    others = other_subjects(pair, n_subjects, seed=seed)
    groups = [subject_prompts(pair), [p for o in others for p in subject_prompts(o)]]
    positives, negatives = (
        cache_activations(
            model,
            group,
            sites=[site],
            layers=layers,
            positions=[[position_of(model, p, position)] for p in group],
        )
        for group in groups
    )
    return {
        layer: Contrast(positives[site, layer], negatives[site, layer]) for site, layer in positives
    }


def input_matrices(mlp: MLPArchitecture) -> list[tuple[str, Float[Tensor, "d_mlp d_model"]]]:
    """Return name and weight of every matrix that reads the MLP's input: W_in, and the gate."""
    matrices = [(mlp.in_name, mlp.W_in()), (mlp.gate_name, mlp.W_gate())]
    return [(name, weight.detach().float().cpu()) for name, weight in matrices if name]
