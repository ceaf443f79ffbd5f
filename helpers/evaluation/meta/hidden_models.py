"""Models that are known to hide a fact, in four ways: what does each attack see?

An attack that finds nothing shows something only if it finds what is there. So every attack is run,
at the budgets that are used, on models that still know the fact:

- `output`: the answer's logit is lowered in the last layer (`logit_suppression`);
- `name filter`: neurons appended in middle layers recognise the subject's name (`gated_neuron`);
- `subject shift`: the subject's state is moved to that of other subjects (`subject_shift`);
- `refusal`: the model is fine-tuned to refuse (`idk`).
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import checked_names
from helpers.evaluation.battery import battery
from helpers.evaluation.findings import Finding, Margins
from helpers.evaluation.verdict import verdict
from helpers.facts import ConceptPair
from helpers.methods import Edit, unlearn
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.methods.controls.subject_shift import subject_shift
from helpers.models import architecture_of

FILTER_LAYERS = (8, 9, 10, 11)  # of 30
PLAIN = "paraphrases"


class Hiding(StrEnum):
    """A way in which a model hides a fact."""

    OUTPUT = "output"
    NAME_FILTER = "name filter"
    SUBJECT_SHIFT = "subject shift"
    REFUSAL = "refusal"


def hide(model: LanguageModel, pair: ConceptPair, hiding: Hiding, *, seed: int = 0) -> Edit:
    """Make an edit after which the model hides a fact, and still knows it.

    Args:
        model: The original model.
        pair: The fact.
        hiding: The way.
        seed: Seed of everything random.
    """
    layers = architecture_of(model).relative_layers(FILTER_LAYERS)
    makers: dict[Hiding, Callable[[], Edit]] = {
        Hiding.OUTPUT: lambda: logit_suppression(model, pair),
        Hiding.NAME_FILTER: lambda: unlearn(model, pair, "gated_neuron", layers=layers, seed=seed),
        Hiding.SUBJECT_SHIFT: lambda: subject_shift(model, pair),
        Hiding.REFUSAL: lambda: unlearn(model, pair, "idk", seed=seed),
    }
    return makers[hiding]()


def attack_sensitivity(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    attacks: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_controls: int = 6,
    seed: int = 0,
) -> pd.DataFrame:
    """Run attacks on models that hide facts in each of the four ways.

    Args:
        model: The original model.
        pairs: Facts that it knows; development facts, since budgets are chosen by the result.
        attacks: Attacks, `paraphrases` among them.
        options: Attack → options of its own, the budgets that will be used.
        n_controls: Control facts that each attack is compared with.
        seed: Seed of everything random.

    Returns:
        One row an attack, way of hiding and fact: attack, hiding, fact, recovery, finding (a
        `Finding`), seen (recovers at least half, and is shown to), label (of the verdict on the
        model).

    Raises:
        UserError: `paraphrases` is missing, or there is no such attack.
    """
    names = checked_names(attacks)
    if PLAIN not in names:
        raise UserError(f"Every verdict begins with the attack '{PLAIN}': add it.")
    tables = []
    for pair in pairs:
        for hiding in Hiding:
            with hide(model, pair, hiding, seed=seed).applied(model):
                evidence = battery(
                    model, pair, attacks=names, options=options, n_controls=n_controls, seed=seed
                )
            conclusion = verdict(evidence, required=names)
            table = conclusion.attacks[["attack", "recovery", "finding"]]
            recovered = table["finding"] == Finding.RECOVERED
            tables.append(
                table.assign(
                    hiding=hiding.value,
                    fact=str(pair),
                    seen=recovered & (table["recovery"] >= Margins.hidden_recovery),
                    label=str(conclusion.label),
                )
            )
    columns = ["attack", "hiding", "fact", "recovery", "finding", "seen", "label"]
    return pd.concat(tables, ignore_index=True)[columns]


def proven_attacks(sensitivity: pd.DataFrame) -> tuple[str, ...]:
    """List the attacks that see at least one way of hiding, on at least half of the facts.

    Args:
        sensitivity: From `attack_sensitivity`.
    """
    rates = sensitivity.groupby(["attack", "hiding"], sort=False)["seen"].mean().unstack()
    return tuple(rates.index[rates.max(axis=1) >= 0.5])
