"""Do the metrics tell what was never known? Here the state without the fact is not a stand-in.

On a pretrained model "absent" has to be another subject (`helpers.evaluation.meta.meta_evaluation`). The
oracle is the same model and the same question, without the fact; and a fact can be hidden just as
deep as the oracle's guess.
"""

import pandas as pd

from helpers.evaluation.meta.all_metrics import compute_metrics
from helpers.evaluation.meta.meta_evaluation import STATES, shown_and_hidden
from helpers.forward.scoring import answer_probability
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.organism.family import Family


def calibrate(family: Family, *, seed: int = 0) -> pd.DataFrame:
    """All readings of each removed fact: known, hidden in the last layer, and never read.

    Args:
        family: Originals and oracles.
        seed: Draws wrong answers.

    Returns:
        As `helpers.evaluation.meta.meta_evaluation.calibrate`, a fact in a training standing for a fact:
        fact (its number), subject, training, state, and a column for each of `READINGS`. Depth is
        NaN: it patches from states of a subject that the model never knew, and has none here.

    Raises:
        UserError: An original's answer cannot be hidden.
    """
    rows = []
    units = [(pair, s) for pair in family.pairs for s in family.seeds]
    for k, (pair, s) in enumerate(units):
        model, oracle = family.original(s), family.oracle(pair, s)
        guess = float(answer_probability(oracle, pair.prompts("train")).mean())
        edit = logit_suppression(model, pair, floor=guess)
        both = shown_and_hidden(model, pair, edit, seed=seed)
        states = (*both, compute_metrics(oracle, pair, seed=seed))
        about = {"fact": k, "subject": pair.subject, "training": s}
        rows += [
            {**about, "state": n, **x, "depth": float("nan")}
            for n, x in zip(STATES, states, strict=True)
        ]
    return pd.DataFrame(rows)
