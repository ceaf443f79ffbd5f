"""How fast a fact is learned: again after an edit, or for the first time by the oracle."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.examples import answer_example, collate, mean_loss
from helpers.facts import ConceptPair
from helpers.methods.contrast import subject_prompts
from helpers.methods.delta import keep, put_back
from helpers.scoring import answer_probability
from helpers.training import train

STEPS = (0, 1, 2, 4, 8, 16, 32)
LR = 3e-4  # a tenth of what the organism was trained with
LESSONS = 2  # sentences that teach it


def learning_curve(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    steps: Sequence[int] = STEPS,
    lr: float = LR,
    lessons: int = LESSONS,
    split: str = "heldout",
) -> pd.DataFrame:
    """P(target) in wordings that are not taught, after so many steps on a few that are.

    Every parameter is trained by AdamW on the first training completions with their answer; the
    model is as it was afterwards, bit by bit.

    Args:
        model: An organism as it is: an original, an oracle, or with an edit applied.
        pair: The fact.
        steps: When it is asked; 0 is before the first step.
        lr: Learning rate.
        lessons: How many sentences teach it.
        split: Whose wordings are asked.

    Returns:
        One row for each of `steps`: step, probability (mean over wordings).
    """
    prompts, module = pair.prompts(split), model._module
    taught = subject_prompts(pair)[:lessons]
    batch = collate([answer_example(model, p, f"{p.answers[0]}.") for p in taught])
    found = {0: answer_probability(model, prompts).mean()}

    def look(step: int, loss: float) -> None:
        if step in steps:
            found[step] = answer_probability(model, prompts).mean()

    before = keep(module, [name for name, _ in module.named_parameters()])
    try:
        train(
            module,
            lambda module, batch: mean_loss(model, batch),
            [batch],
            steps=max(max(steps), 1),
            lr=lr,
            on_step=look,
        )
    finally:
        put_back(module, before)
    at = [s for s in sorted(found) if s in steps]
    return pd.DataFrame({"step": at, "probability": [float(found[s]) for s in at]})


def learned(curve: pd.DataFrame) -> float:
    """Mean P(target) over the curve, each doubling of the steps alike: the higher, the faster."""
    return float(np.mean(curve["probability"]))
