"""Meta-evaluation of the metrics on organisms, where the control is the same fact in an oracle.

On a pretrained model the control has to be another subject
(`helpers.evaluation.meta.meta_evaluation`). The oracle is the same model and the same prompts,
without the fact; and a fact can be hidden until its probability is that of the oracle's guess.
"""

import pandas as pd

from helpers.evaluation.meta.all_metrics import compute_metrics
from helpers.evaluation.meta.meta_evaluation import KnownState, present_and_hidden
from helpers.forward.scoring import answer_probability
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.organism.family import Family


def calibrate(family: Family, *, seed: int = 0) -> pd.DataFrame:
    """Compute all metrics of each removed fact: known, hidden in the last layer, and removed.

    Args:
        family: Originals and oracles.
        seed: Draws wrong answers.

    Returns:
        One row per fact, seed and state, as in `helpers.evaluation.meta.meta_evaluation`: fact (an
        index of fact and seed), subject, training (the seed), state, and a column for each metric.
        Depth is NaN: it patches from states of a control subject, and there is none here.

    Raises:
        UserError: An original's answer cannot be hidden.
    """
    rows = []
    units = [(pair, s) for pair in family.pairs for s in family.seeds]
    for k, (pair, s) in enumerate(units):
        model, oracle = family.original(s), family.oracle(pair, s)
        guess = float(answer_probability(oracle, pair.prompts("train")).mean())
        edit = logit_suppression(model, pair, target_prob=guess)
        both = present_and_hidden(model, pair, edit, seed=seed)
        states = (*both, compute_metrics(oracle, pair, seed=seed))
        names = {"fact": k, "subject": pair.subject, "training": s}
        rows += [
            {**names, "state": state.value, **metrics, "depth": float("nan")}
            for state, metrics in zip(KnownState, states, strict=True)
        ]
    return pd.DataFrame(rows)
