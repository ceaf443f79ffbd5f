"""Learning curves: how fast an organism learns a fact, again after an edit or as the oracle."""

from collections.abc import Sequence

import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.relearning import relearned
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.fitting.contrast import subject_prompts
from helpers.training.examples import answer_example, collate

STEPS = (1, 2, 4, 8, 16, 32)
LR = 3e-4  # about a tenth of the organism's own learning rate
N_EXAMPLES = 2  # training sentences


def learning_curve(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    steps: Sequence[int] = STEPS,
    lr: float = LR,
    n_examples: int = N_EXAMPLES,
) -> pd.DataFrame:
    """Measure P(target) on held-out prompts while the model is trained on a few sentences.

    Every parameter is trained on the first training completions with their answer; afterwards the
    model is as it was, bit by bit.

    Args:
        model: An organism as it is: an original, an oracle, or with an edit applied.
        pair: The fact.
        steps: Steps after which P(target) is measured, besides before the first step.
        lr: Learning rate.
        n_examples: Number of training sentences.

    Returns:
        One row for 0 and each of `steps`: step, probability (mean over prompts).
    """
    prompts = subject_prompts(pair)[:n_examples]
    batch = collate([answer_example(model, p, f"{p.answers[0]}.") for p in prompts])
    heldout = pair.prompts("heldout")
    scores = {0: answer_probability(model, heldout)}
    scores |= relearned(model, heldout, lambda step: batch, steps=steps, lr=lr)
    means = [float(p.mean()) for p in scores.values()]
    return pd.DataFrame({"step": list(scores), "probability": means})


def learning_curve_auc(curve: pd.DataFrame) -> float:
    """Average P(target) over the curve, each doubling of the steps alike: higher is faster."""
    return float(curve["probability"].mean())
