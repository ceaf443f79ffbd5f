"""Does a battery call hidden what is hidden, present what is present, and absent the rest?

A verification is itself put to the test, on facts whose state is known (`cases`): once under
`logit_suppression`, once as it is, and once asked about a subject that was never known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from nnsight import LanguageModel
from scipy.stats import binomtest

from helpers.errors import UserError
from helpers.evaluation.battery import Evidence, battery
from helpers.evaluation.meta.meta_evaluation import ABSENT, HIDDEN, PRESENT, STATES, cases
from helpers.evaluation.verdict import GONE, NOTHING, Verdict, verdict
from helpers.facts import ConceptPair
from helpers.methods.controls.logit_suppression import logit_suppression

UNDECIDED = "undecided"
WORDS = (*STATES, UNDECIDED)
SHORT = ("paraphrases", "stitched")  # a battery that tells the three states apart
SURE = 0.3  # P(target) of a fact that is tried: of one hardly known too few wordings can count


def known_states(
    model: LanguageModel,
    relation: str,
    *,
    n: int,
    attacks: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_absent: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """The battery's word on `n` facts that the model knows well, in the three known states.

    The word is the verdict's where that is `hidden` or `present`; `absent` where every attack that
    brings it back from the original is shown to bring nothing back; `undecided` where neither can
    be shown.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        n: How many facts at most.
        attacks: A cut-down battery, `paraphrases` among them.
        options: Attack → its own options.
        n_absent: Never-known subjects that each attack is compared with.
        seed: Draws facts and subjects.

    Returns:
        One row a fact and state: fact, state, word, right (whether the word is the state's name),
        by (attacks that bring something back).

    Raises:
        UserError: `paraphrases` is missing, there is no such attack, or as `cases`.
    """
    if "paraphrases" not in attacks:
        raise UserError("Every verdict begins with the attack 'paraphrases': add it.")
    how = {"attacks": attacks, "options": options, "n_absent": n_absent, "seed": seed}
    asked = cases(model, relation, n=n, seed=seed, least=SURE)
    tables = [judged(model, fact, stranger, **how) for fact, stranger in asked]
    return pd.concat(tables, ignore_index=True)


def judged(
    model: LanguageModel,
    fact: ConceptPair,
    stranger: ConceptPair,
    *,
    attacks: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_absent: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """The battery's word on one fact, and a subject that was never known, as `known_states`."""
    how = {"attacks": attacks, "options": options, "n_absent": n_absent, "seed": seed}
    evidence = {
        PRESENT: battery(model, fact, **how),
        ABSENT: battery(model, fact, **how, asked_as=stranger),
    }
    with logit_suppression(model, fact).applied(model):
        evidence[HIDDEN] = battery(model, fact, **how)
    rows = []
    for state in STATES:
        found = verdict(evidence[state], required=attacks, seed=seed)
        back = found.attacks.query("finding == 'comes back'")["attack"]
        word = predicted_state(found, evidence[state])
        rows.append((str(fact), state, word, word == state, ", ".join(back)))
    return pd.DataFrame(rows, columns=["fact", "state", "word", "right", "by"])


def predicted_state(found: Verdict, evidence: Evidence) -> str:
    """One of `WORDS`: what the attacks of a verdict say, whatever the damage, as `known_states`.

    An attack that brings nothing back from the original either says nothing; one that has no hold
    on the model, where it would have on others, leaves the state undecided.
    """
    if found.word in (PRESENT, HIDDEN):
        return found.word
    findings = set(found.attacks["finding"])
    shown = GONE in findings and findings <= {GONE, NOTHING}
    return ABSENT if shown and not evidence.nothing else UNDECIDED


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """On which share of the facts the battery's word is the truth.

    Args:
        table: From `known_states`.

    Returns:
        One row a state: state, right (how many), n, share, low, high; the exact 95 % interval of
        Clopper and Pearson (1934), over facts.
    """
    rows = []
    for state in STATES:
        right = table.loc[table["state"] == state, "right"]
        k, n = int(right.sum()), len(right)
        interval = binomtest(k, n).proportion_ci()
        rows.append((state, k, n, k / n, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["state", "right", "n", "share", "low", "high"])
