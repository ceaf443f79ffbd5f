"""Accuracy of the verdict on facts whose state is known: present, hidden or absent.

The facts and their control facts come from `matched_pairs`. A battery attacks each fact as it is,
under `logit_suppression`, and with its control fact in its place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from nnsight import LanguageModel
from scipy.stats import binomtest

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import checked_names
from helpers.evaluation.battery import Evidence, battery
from helpers.evaluation.findings import Finding
from helpers.evaluation.meta.meta_evaluation import KnownState, matched_pairs
from helpers.evaluation.verdict import Verdict, verdict
from helpers.facts import ConceptPair
from helpers.facts.known import SURELY_KNOWN_PROB
from helpers.methods.controls.logit_suppression import logit_suppression

UNDECIDED = "undecided"
PREDICTED_STATES = (*(state.value for state in KnownState), UNDECIDED)
MINI_SUITE = ("paraphrases", "stitching")  # the smallest battery that separates the three states


def classify_facts(
    model: LanguageModel,
    relation: str,
    *,
    n: int,
    attacks: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_controls: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict the state of facts that the model surely knows, in the three known states.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        n: Largest number of facts.
        attacks: Attacks of a small battery, `paraphrases` among them.
        options: Attack → options of its own.
        n_controls: Control facts that each attack is compared with.
        seed: Draws facts and control subjects.

    Returns:
        One row a fact and state: fact, state, predicted (see `predicted_state`), correct (whether
        they are equal), by (attacks that recover something).

    Raises:
        UserError: `paraphrases` is missing, there is no such attack, or there are fewer than two
            facts.
    """
    if "paraphrases" not in attacks:
        raise UserError("Every verdict begins with the attack 'paraphrases': add it.")
    pairs = matched_pairs(model, relation, n=n, seed=seed, min_prob=SURELY_KNOWN_PROB)
    tables = [
        classify_states(
            model,
            fact,
            control,
            attacks=attacks,
            options=options,
            n_controls=n_controls,
            seed=seed,
        )
        for fact, control in pairs
    ]
    return pd.concat(tables, ignore_index=True)


def classify_states(
    model: LanguageModel,
    fact: ConceptPair,
    control: ConceptPair,
    *,
    attacks: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_controls: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict the state of one fact in the three known states.

    Args:
        model: The original model.
        fact: A fact that it knows.
        control: A control fact with the same answer.
        attacks: Attacks of a small battery.
        options: Attack → options of its own.
        n_controls: Control facts that each attack is compared with.
        seed: Seed of everything random.

    Returns:
        One row a state: fact, state, predicted, correct, by.
    """
    attacks = checked_names(attacks)

    def evidence(query_pair: ConceptPair | None = None) -> Evidence:
        return battery(
            model,
            fact,
            attacks=attacks,
            options=options,
            n_controls=n_controls,
            seed=seed,
            query_pair=query_pair,
        )

    by_state = {KnownState.PRESENT: evidence(), KnownState.ABSENT: evidence(control)}
    with logit_suppression(model, fact).applied(model):
        by_state[KnownState.HIDDEN] = evidence()
    rows = []
    for state in KnownState:
        conclusion = verdict(by_state[state], required=attacks)
        recovered = conclusion.attacks["finding"] == Finding.RECOVERED
        recovering = ", ".join(conclusion.attacks[recovered]["attack"])
        predicted = predicted_state(conclusion, by_state[state])
        rows.append((str(fact), state.value, predicted, predicted == state, recovering))
    return pd.DataFrame(rows, columns=["fact", "state", "predicted", "correct", "by"])


def predicted_state(conclusion: Verdict, evidence: Evidence) -> str:
    """Predict the state of a fact from the attacks of a verdict, whatever the damage.

    It is the verdict's label if that is `present` or `hidden`. It is `absent` if every attack that
    recovers the fact from the original is shown to recover nothing; an attack that recovers nothing
    from the original shows nothing. An attack that is not applicable to this model, though it is to
    others, leaves the state `undecided`.

    Returns:
        One of `PREDICTED_STATES`.
    """
    if conclusion.label in (KnownState.PRESENT, KnownState.HIDDEN):
        return str(conclusion.label)
    findings = set(conclusion.attacks["finding"])
    gone = Finding.GONE in findings and findings <= {Finding.GONE, Finding.NOT_APPLICABLE}
    return KnownState.ABSENT.value if gone and not evidence.not_applicable else UNDECIDED


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """Compute the accuracy of the predicted state, for each true state.

    Args:
        table: From `classify_facts`.

    Returns:
        One row a state: state, correct (number), n, accuracy, low, high; the exact 95 % interval of
        Clopper and Pearson (1934), over facts.
    """
    rows = []
    for state in KnownState:
        correct = table.loc[table["state"] == state, "correct"]
        k, n = int(correct.sum()), len(correct)
        interval = binomtest(k, n).proportion_ci()
        rows.append((state.value, k, n, k / n, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["state", "correct", "n", "accuracy", "low", "high"])
