"""The subject against other subjects: prompts and states that show what is the subject's own."""

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
    """States of one layer at one token of each prompt.

    Attributes:
        inside: Prompts about the subject, (n, width).
        outside: The same prompts about other subjects, (m, width).
    """

    inside: Float[Tensor, "n width"]
    outside: Float[Tensor, "m width"]

    def difference(self) -> Float[Tensor, " width"]:
        """Mean inside − mean outside."""
        return self.inside.mean(0) - self.outside.mean(0)


def subject_prompts(pair: ConceptPair) -> list[Prompt]:
    """The `train` completions, less those that begin with the subject.

    The first token of a text is a state of its own in most models, much larger than any other.
    """
    prompts = [p for p in pair.prompts("train") if p.format == "completion"]
    return [p for p in prompts if not p.startswith(p.subject)] or prompts


def other_subjects(pair: ConceptPair, n: int, *, seed: int = 0) -> list[ConceptPair]:
    """`n` neighbours of the pair drawn by `seed`, asked in the pair's own ways.

    Raises:
        UserError: The relation has no other subjects.
    """
    others = pair.neighbours(n, seed=seed)
    if not others:
        raise UserError(
            f"What is specific to {pair.subject} can only be told by comparison, and the relation "
            f"'{pair.relation}' has no other subjects: use one of the Factbook's relations, or a "
            "method that needs no comparison (rome, memit, alphaedit)."
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
    """States of the subject's prompts and of other subjects', at one token each.

    Args:
        model: Any model of a known family.
        pair: The subject.
        layers: Which layers; the forward pass stops after the last.
        site: `mlp_in` (what W_in reads) or `neurons` (what W_out reads).
        position: At the subject's last token or at the prompt's.
        n_subjects: Other subjects, drawn by `seed`.
        seed: Draws them.

    Raises:
        UserError: The relation has no other subjects.
    """
    others = other_subjects(pair, n_subjects, seed=seed)
    groups = [subject_prompts(pair), [p for o in others for p in subject_prompts(o)]]
    inside, outside = (
        cache_activations(
            model,
            group,
            sites=[site],
            layers=layers,
            positions=[[position_of(model, p, position)] for p in group],
        )
        for group in groups
    )
    return {layer: Contrast(inside[site, layer], outside[site, layer]) for site, layer in inside}


def input_matrices(mlp: MLPArchitecture) -> list[tuple[str, Float[Tensor, "d_mlp d_model"]]]:
    """Name and weight of every matrix that reads the MLP's input: W_in, and the gate's."""
    matrices = [(mlp.in_name, mlp.W_in()), (mlp.gate_name, mlp.W_gate())]
    return [(name, weight.detach().float().cpu()) for name, weight in matrices if name]


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Refuse a hyperparameter outside [low, high].

    Raises:
        UserError: It is outside.
    """
    if not low <= value <= high:
        raise UserError(f"{name} is {value}: choose a value from {low:g} to {high:g}.")
