"""Models that are known to hide a fact, in four ways: what does each attack see?

An attack that finds nothing shows something only if it finds what is there. So every attack is run,
at the budgets that are used, on models that still know the fact:

- `output`: the answer's logit is lowered in the last layer (`logit_suppression`);
- `name filter`: neurons appended in middle layers recognise the subject's name (`gated_neuron`);
- `subject shift`: the subject's state is moved to that of other subjects (`subject_shift`);
- `refusal`: the model is fine-tuned to refuse (`idk`).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.battery import battery, checked_battery
from helpers.evaluation.findings import Finding, Margins
from helpers.evaluation.verdict import verdict
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods import Edit, unlearn
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.methods.controls.subject_shift import subject_shift
from helpers.models import architecture_of

log = logging.getLogger(__name__)

FILTER_LAYERS = (8, 9, 10, 11)  # of 30
HIDDEN_RATIO = 0.5  # of P(target): a model that says more of it does not hide the fact


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

    Raises:
        UserError: The fact can't be hidden in this way.
    """
    layers = architecture_of(model).relative_layers(FILTER_LAYERS)
    makers: dict[Hiding, Callable[[], Edit]] = {
        Hiding.OUTPUT: lambda: logit_suppression(model, pair),
        Hiding.NAME_FILTER: lambda: unlearn(model, pair, "gated_neuron", layers=layers, seed=seed),
        Hiding.SUBJECT_SHIFT: lambda: subject_shift(model, pair),
        Hiding.REFUSAL: lambda: unlearn(model, pair, "idk", seed=seed),
    }
    return makers[hiding]()


def hidden_models(
    model: LanguageModel,
    pair: ConceptPair,
    hidings: Sequence[Hiding] = tuple(Hiding),
    *,
    seed: int = 0,
) -> Iterator[tuple[Hiding, Edit]]:
    """Iterate over the ways in which a fact can be hidden, with the edits that do it.

    A way that fails is left out: it refuses, or the model still says more than `HIDDEN_RATIO` of
    P(target) on the held-out prompts.

    Args:
        model: The original model.
        pair: The fact.
        hidings: The ways to try.
        seed: Seed of everything random.
    """
    prompts = pair.prompts("heldout")
    p_original = answer_probability(model, prompts).mean()
    for hiding in hidings:
        try:
            edit = hide(model, pair, hiding, seed=seed)
        except UserError as error:
            log.info("%s can't be hidden by %s: %s", pair, hiding.value, error)
            continue
        with edit.applied(model):
            p_hidden = answer_probability(model, prompts).mean()
        if p_hidden < HIDDEN_RATIO * p_original:
            yield hiding, edit


def attack_sensitivity(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    attacks: Sequence[str],
    hidings: Sequence[Hiding] = tuple(Hiding),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n_controls: int = 6,
    seed: int = 0,
) -> pd.DataFrame:
    """Run attacks on models that hide facts in each way.

    An attack is proven by one way that it sees. So an expensive one, or one that fine-tunes, is
    tried on a fact's ways in turn only until it sees one.

    Args:
        model: The original model.
        pairs: Facts that it knows; development facts, since budgets are chosen by the result.
        attacks: Attacks, `paraphrases` among them.
        hidings: The ways to try.
        options: Attack → options of its own, the budgets that will be used.
        n_controls: Control facts that each attack is compared with.
        seed: Seed of everything random.

    Returns:
        One row an attack, way of hiding and fact that were tried: attack, hiding, fact, recovery,
        finding (a `Finding`), seen (it comes back, by at least half on average), label (of the
        verdict on the model).

    Raises:
        UserError: `paraphrases` is missing, or there is no such attack.
    """
    names = checked_battery(attacks)
    tables = []
    for pair in pairs:
        proven: set[str] = set()
        for hiding, edit in hidden_models(model, pair, hidings, seed=seed):
            tried = [name for name in names if name not in proven]
            with edit.applied(model):
                evidence = battery(
                    model, pair, attacks=tried, options=options, n_controls=n_controls, seed=seed
                )
            conclusion = verdict(evidence, required=tried)
            table = conclusion.attacks[["attack", "recovery", "finding"]]
            recovered = table["finding"].isin([Finding.RECOVERED, Finding.SOME_PROMPTS])
            seen = recovered & (table["recovery"] >= Margins.hidden_recovery)
            proven |= {name for name in table["attack"][seen] if ATTACKS[name].is_costly}
            tables.append(
                table.assign(
                    hiding=hiding.value,
                    fact=str(pair),
                    seen=seen,
                    label=str(conclusion.label),
                )
            )
    if not tables:
        raise UserError(
            "No model hides the fact, so no attack can be shown to see it: ask another."
        )
    columns = ["attack", "hiding", "fact", "recovery", "finding", "seen", "label"]
    return pd.concat(tables, ignore_index=True)[columns]


def proven_attacks(sensitivity: pd.DataFrame) -> tuple[str, ...]:
    """List the attacks that see at least one way of hiding, on at least half of the facts.

    Args:
        sensitivity: From `attack_sensitivity`.
    """
    rates = sensitivity.groupby(["attack", "hiding"], sort=False)["seen"].mean()
    best = rates.groupby("attack", sort=False).max()
    return tuple(best.index[best >= 0.5])
