"""The level of a subject's other associations: as far down as a fact should be forgotten."""

from nnsight import LanguageModel

from helpers.facts import ConceptPair
from helpers.facts.associated import associated_controls
from helpers.forward.scoring import answer_probability


def association_level(model: LanguageModel, pair: ConceptPair, *, n: int = 8) -> float:
    """Compute the mean probability of the subject's other associations on the training prompts.

    It is infinite where none are known.

    Args:
        model: Any model of a known family.
        pair: A fact.
        n: Largest number of associations.
    """
    controls = associated_controls(pair, n=n)
    prompts = [p for control in controls for p in control.prompts("train")]
    return float(answer_probability(model, prompts).mean()) if prompts else float("inf")
