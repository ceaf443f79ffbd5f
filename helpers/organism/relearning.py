"""How fast a fact is learned: again after an edit, or for the first time by the oracle."""

from collections.abc import Sequence

import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.relearning import relearned
from helpers.facts import ConceptPair
from helpers.methods.fitting.contrast import subject_prompts
from helpers.training.examples import answer_example, collate

STEPS = (1, 2, 4, 8, 16, 32)
LR = 3e-4  # about a tenth of what the organism was trained with
LESSONS = 2  # sentences that teach it


def learning_curve(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    steps: Sequence[int] = STEPS,
    lr: float = LR,
    lessons: int = LESSONS,
) -> pd.DataFrame:
    """P(target) in held-out wordings, after so many steps on a few sentences that say it.

    Every parameter is trained on the first training completions with their answer; the model is as
    it was afterwards, bit by bit.

    Args:
        model: An organism as it is: an original, an oracle, or with an edit applied.
        pair: The fact.
        steps: When it is asked, besides before the first step.
        lr: Learning rate.
        lessons: How many sentences teach it.

    Returns:
        One row for 0 and each of `steps`: step, probability (mean over wordings).
    """
    taught = subject_prompts(pair)[:lessons]
    batch = collate([answer_example(model, p, f"{p.answers[0]}.") for p in taught])
    found = relearned(model, pair, lambda step: batch, steps=steps, lr=lr)
    mean = found.groupby("budget")["score"].mean()
    return pd.DataFrame({"step": mean.index.astype(int), "probability": mean.to_numpy()})


def learned(curve: pd.DataFrame) -> float:
    """Mean P(target) over the curve, each doubling of the steps alike: the higher, the faster."""
    return float(curve["probability"].mean())
