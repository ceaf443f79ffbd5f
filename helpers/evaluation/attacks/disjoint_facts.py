"""Relearning on a disjoint subset: train on some of the forgotten facts, and ask for the others.

The facts are independent: nothing in "The capital of France is Paris" tells the capital of Japan.
So what comes back of the facts that were not trained on was there before (Deeb & Roger 2025, "Do
Unlearning Methods Remove Information from Language Model Weights?"; Łucki et al. 2025, "An
Adversarial Perspective on Machine Unlearning for AI Safety"). It needs an edit of several pairs,
so it is no attack of the battery, whose edits are of one.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import control_facts, require_budgets
from helpers.evaluation.attacks.relearning import BATCH, RATES, STEPS, mean_over_steps
from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.training.examples import Batch, answer_example, collate

N_CANDIDATES = 3  # control facts of a pair, of which the first that is no forgotten one is taken


def relearn_disjoint(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    rates: Sequence[float] = RATES,
) -> pd.DataFrame:
    """Fine-tune the edited model on half of the forgotten facts, and score the other half.

    A fact's score is the mean P(target) over its held-out statements; after fine-tuning, the mean
    over checkpoints too. Each fact has a control: another subject with the same target, which the
    original does not know (`control_facts`), in the same fine-tuned model.

    Args:
        model: The model with its edit, which is restored bit by bit.
        pairs: The facts that the edit forgot, at least two (`Edit.pair` lists their names).
        seed: Divides the facts, and draws batches and controls.
        steps: Checkpoints.
        rates: Learning rates.

    Returns:
        One row a fact that was not trained on: budget (learning rate; 0 before fine-tuning),
        subject, edited, control, and original (P(target) in the model without edits).

    Raises:
        UserError: There are fewer than two facts, no steps or rates, one is not positive, or there
            are too few control facts.
    """
    require_budgets("rates", rates)
    if len(pairs) < 2:
        raise UserError(
            f"The edit forgot {len(pairs)} fact: give at least two, one to train on and one to ask."
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    half = len(pairs) // 2
    given, asked = ([pairs[i] for i in part] for part in (order[:half], order[half:]))
    with base_model(model):
        controls = [_control(model, pair, pairs, seed) for pair in asked]
        original = _fact_means(asked, answer_probability(model, _statements(asked, "heldout")))
    queried = [*asked, *controls]
    prompts = _statements(queried, "heldout")
    examples = [answer_example(model, p, p.answers[0]) for p in _statements(given, "train")]

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        return collate(examples, rng.permutation(len(examples))[:BATCH])

    scores = {0.0: answer_probability(model, prompts)}
    scores |= mean_over_steps(model, prompts, batch, steps, rates)
    tables = []
    for budget, values in scores.items():
        edited, control = np.split(_fact_means(queried, values), 2)
        columns = {"edited": edited, "control": control, "original": original}
        subjects = [pair.subject for pair in asked]
        tables.append(pd.DataFrame({"budget": budget, "subject": subjects} | columns))
    return pd.concat(tables, ignore_index=True)


def disjoint_recovery(table: pd.DataFrame) -> pd.Series:
    """Compute the share of the facts that came back at each learning rate.

    (edited − control) / (original − control before), each a mean over facts: 0 is what a fact shows
    that was never known, 1 what the original shows (Deeb & Roger 2025).

    Args:
        table: The result of `relearn_disjoint`.

    Raises:
        UserError: The original shows no more of the facts than of their controls.
    """
    means = table.groupby("budget")[["edited", "control", "original"]].mean()
    known = means.loc[0.0, "original"] - means.loc[0.0, "control"]
    if not known > 0:
        raise UserError("The original knows none of the facts: give facts that it knows.")
    return ((means["edited"] - means["control"]) / known).rename("recovery")


def _control(
    model: LanguageModel, pair: ConceptPair, pairs: Sequence[ConceptPair], seed: int
) -> ConceptPair:
    """Draw a control fact whose subject is none of the forgotten facts'."""
    subjects = {p.subject for p in pairs}
    controls = control_facts(model, pair, n=N_CANDIDATES, seed=seed)
    return next((c for c in controls if c.subject not in subjects), controls[0])


def _statements(pairs: Sequence[ConceptPair], split: str) -> list[Prompt]:
    return [p for pair in pairs for p in pair.statements(split)]


def _fact_means(
    pairs: Sequence[ConceptPair], scores: Float[np.ndarray, " prompts"]
) -> Float[np.ndarray, " facts"]:
    """Average the scores of `_statements(pairs, "heldout")` over each fact's statements."""
    ends = np.cumsum([len(_statements([pair], "heldout")) for pair in pairs])[:-1]
    return np.array([part.mean() for part in np.split(scores, ends)])
