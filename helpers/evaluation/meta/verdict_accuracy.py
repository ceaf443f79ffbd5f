"""Accuracy of the verdict on facts whose state is known: present, hidden or absent.

The facts and their control facts come from `matched_pairs`. A battery attacks each fact as it is,
hidden in several ways (`Hiding`), and with two kinds of absent facts in its place: its control
fact, another subject that the model knows nothing of, and a non-answer that its own subject is
associated with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pandas as pd
from nnsight import LanguageModel
from scipy.stats import binomtest

from helpers.evaluation.attacks.registry import associated_facts
from helpers.evaluation.battery import battery, checked_battery
from helpers.evaluation.findings import Finding
from helpers.evaluation.meta.hidden_models import Hiding, hidden_models
from helpers.evaluation.meta.meta_evaluation import KnownState, matched_pairs
from helpers.evaluation.verdict import Label, Verdict, verdict
from helpers.facts import ConceptPair
from helpers.facts.known import SURELY_KNOWN_PROB
from helpers.methods import Edit

UNDECIDED = "undecided"
FOUND = (Label.PRESENT, Label.SUPPRESSED, Label.HIDDEN)  # labels that say that the model knows it
PARTIAL = Label.PARTIAL.value  # as a prediction: what comes back is shown, and less than half
PREDICTED_STATES = (*(x.value for x in FOUND), PARTIAL, KnownState.ABSENT.value, UNDECIDED)
RIGHT: dict[KnownState, set[str]] = {
    KnownState.PRESENT: {Label.PRESENT},
    KnownState.HIDDEN: {Label.HIDDEN, Label.SUPPRESSED},
    KnownState.ABSENT: {KnownState.ABSENT},
}
"""State → the predictions that are right."""
UNRELATED, ASSOCIATED = "unrelated", "associated"  # kinds of absent facts


def classify_facts(
    model: LanguageModel,
    relation: str,
    *,
    n: int,
    attacks: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_hidings: int = 1,
    n_controls: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict the state of facts that the model surely knows, in every known state.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        n: Largest number of facts.
        attacks: Attacks of a small battery, `paraphrases` among them.
        options: Attack → options of its own.
        n_hidings: Ways in which each fact is hidden; the facts take turns through `Hiding`.
        n_controls: Control facts that each attack is compared with.
        seed: Draws facts and control subjects.

    Returns:
        One row a fact, state and kind: fact, state (a `KnownState`), kind (a `Hiding`, or of what
        is absent), predicted (see `predicted_state`), correct, by (attacks that recover something).

    Raises:
        UserError: `paraphrases` is missing, there is no such attack, or there are fewer than two
            facts.
    """
    attacks = checked_battery(attacks)
    pairs = matched_pairs(model, relation, n=n, seed=seed, min_prob=SURELY_KNOWN_PROB)
    hidings = list(Hiding)
    tables = [
        classify_states(
            model,
            fact,
            control,
            attacks=attacks,
            options=options,
            hidings=[hidings[(k + j) % len(hidings)] for j in range(n_hidings)],
            n_controls=n_controls,
            seed=seed,
        )
        for k, (fact, control) in enumerate(pairs)
    ]
    return pd.concat(tables, ignore_index=True)


def classify_states(
    model: LanguageModel,
    fact: ConceptPair,
    control: ConceptPair,
    *,
    attacks: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    hidings: Sequence[Hiding] = tuple(Hiding),
    n_controls: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict the state of one fact in every known state.

    A way of hiding that fails is left out (`hidden_models`).

    Args:
        model: The original model.
        fact: A fact that it knows.
        control: A control fact with the same answer.
        attacks: Attacks of a small battery.
        options: Attack → options of its own.
        hidings: Ways in which the fact is hidden.
        n_controls: Control facts that each attack is compared with.
        seed: Seed of everything random.

    Returns:
        One row a state and kind: fact, state, kind, predicted, correct, by.
    """
    attacks, rows = checked_battery(attacks), []
    for state, kind, edit, query_pair in _known_states(model, fact, control, hidings, seed):
        with edit.applied(model) if edit else nullcontext():
            evidence = battery(
                model,
                fact,
                attacks=attacks,
                options=options,
                n_controls=n_controls,
                seed=seed,
                query_pair=query_pair,
            )
        conclusion = verdict(evidence, required=attacks)
        recovered = conclusion.attacks["finding"] == Finding.RECOVERED
        recovering = ", ".join(conclusion.attacks[recovered]["attack"])
        predicted = predicted_state(conclusion)
        rows.append(
            (str(fact), state.value, kind, predicted, predicted in RIGHT[state], recovering)
        )
    return pd.DataFrame(rows, columns=["fact", "state", "kind", "predicted", "correct", "by"])


def _known_states(
    model: LanguageModel,
    fact: ConceptPair,
    control: ConceptPair,
    hidings: Sequence[Hiding],
    seed: int,
) -> Iterator[tuple[KnownState, str, Edit | None, ConceptPair | None]]:
    """Iterate over (state, kind, the edit that makes it, the pair to query instead)."""
    yield KnownState.PRESENT, "", None, None
    yield KnownState.ABSENT, UNRELATED, None, control
    for associated in associated_facts(model, fact, n=1, seed=seed):
        yield KnownState.ABSENT, ASSOCIATED, None, associated
    for hiding, edit in hidden_models(model, fact, hidings, seed=seed):
        yield KnownState.HIDDEN, hiding.value, edit, None


def predicted_state(conclusion: Verdict) -> str:
    """Predict the state of a fact from the attacks of a verdict, whatever the damage.

    It is the verdict's label if that is one of `FOUND`. Else it is `partial` if an attack is shown
    to recover something, or brings a single prompt back by half. It is `absent` if every attack
    that recovers the fact from the original is shown to recover nothing; an attack that recovers
    nothing from the original shows nothing. Anything else is `undecided`: so few prompts show
    neither, or an attack cannot be tried on this model, though it can on the original.

    Returns:
        One of `PREDICTED_STATES`.
    """
    if conclusion.label in FOUND:
        return str(conclusion.label)
    findings = set(conclusion.attacks["finding"])
    if findings & {Finding.RECOVERED, Finding.SOME_PROMPTS}:
        return PARTIAL
    gone = Finding.GONE in findings and findings <= {Finding.GONE, Finding.NOT_KNOWN}
    return KnownState.ABSENT.value if gone else UNDECIDED


def accuracies(table: pd.DataFrame, *, by: Sequence[str] = ("state",)) -> pd.DataFrame:
    """Compute the accuracy of the predicted state, for each true state.

    Args:
        table: From `classify_facts`.
        by: Columns whose values are told apart: `state`, or `state` and `kind`.

    Returns:
        One row a group: the columns of `by`, correct (number), n, accuracy, low, high (the exact
        95 % interval of Clopper and Pearson 1934, over facts), falsely_absent (facts that the model
        has and that are called absent).
    """
    rows = []
    for group, part in table.groupby(list(by), sort=False):
        k, n = int(part["correct"].sum()), len(part)
        interval = binomtest(k, n).proportion_ci()
        is_false = ~part["correct"] & (part["predicted"] == KnownState.ABSENT)
        rows.append((*group, k, n, k / n, interval.low, interval.high, int(is_false.sum())))
    columns = ["correct", "n", "accuracy", "low", "high", "falsely_absent"]
    return pd.DataFrame(rows, columns=[*by, *columns])
