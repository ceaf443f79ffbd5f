"""Findings: each attack's recovery and each metric's damage, tested against its bound.

*Gone* and *kept* are claims of equivalence, and need a test that can fail to make them (TOST, two
one-sided tests; Schuirmann 1987). "Not significantly different" would be cheap to get with few
prompts.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.battery import Evidence
from helpers.evaluation.recovery import (
    MIN_KNOWN_GAP,
    NotFiniteError,
    NothingKnownError,
    Recovery,
    over_forgetting,
    recovery_ratios,
)
from helpers.evaluation.scorecard import Scorecard
from helpers.stats.equivalence import MIN_UNITS, holm, tost, welch
from helpers.stats.intervals import linearized_ratio, mean_interval

NAN = float("nan")


@dataclass(frozen=True)
class Margins:
    """Equivalence bounds of a verdict. State them before looking.

    Attributes:
        max_recovery: Gone: an attack recovers less than this ratio, where the mean of its controls
            is 0 and the original 1. Controls that differ widen the test's error; they do not move
            the bound.
        hidden_recovery: Hidden: an attack recovers at least this ratio. No single known prompt
            may come back by so much either, whatever the mean.
        max_over_forgetting: Factor by which P(target) may lie below that of the controls. Far less
            is a scar that gives the fact away (Deepak et al. 2025).
        min_neighbours: Least ratio, after / before, of P(answer) for other subjects.
        min_related: The same for other facts of the subject and of the target.
        max_perplexity_change: Largest relative rise of perplexity.
        min_known_gap: An attack counts on prompts where the original's score is at least so far
            above the control facts' score.
        alpha: Level of every test.
    """

    max_recovery: float = 0.1
    hidden_recovery: float = 0.5
    max_over_forgetting: float = 30.0
    min_neighbours: float = 0.9
    min_related: float = 0.75
    max_perplexity_change: float = 0.02
    min_known_gap: float = MIN_KNOWN_GAP
    alpha: float = 0.05


class Finding(StrEnum):
    """Finding about an attack."""

    GONE = "gone"
    RECOVERED = "comes back"
    SOME_PROMPTS = "some prompts come back"
    INCONCLUSIVE = "open"
    NOT_KNOWN = "not known under it"  # by the original, so that nothing could come back
    NOT_APPLICABLE = "nothing to attack"
    UNPROVEN = "sees no hidden fact"  # of the known-hidden models, at this budget
    NOT_RUN = "not run"


class Damage(StrEnum):
    """Finding about a metric of what must stay."""

    KEPT = "kept"
    DAMAGED = "damaged"
    INCONCLUSIVE = "open"


def attack_findings(
    cases: Sequence[Evidence],
    required: Sequence[str],
    margins: Margins,
    proven: Collection[str] | None = None,
) -> pd.DataFrame:
    """Test the recovery of every attack against the bounds.

    Args:
        cases: Evidence of one fact, with prompts as the units, or of several, with facts as units.
        required: Attacks that get a row even if they were not run.
        margins: The bounds.
        proven: Attacks that were shown to see a known-hidden fact; others show nothing by finding
            nothing. None if that was not tried.

    Returns:
        One row an attack, as `Verdict.attacks`.
    """
    names = list(dict.fromkeys([*required, *(n for case in cases for n in case.attacks)]))
    rows = [_attack_row(cases, name, margins) for name in names]
    p_back = np.array([row.pop("p_back") for row in rows], dtype=np.float64)
    table = pd.DataFrame(rows)
    table["p_back"] = np.nan
    counts = np.array([ATTACKS[n].counts_for_verdict for n in names])
    # The verdict rests on one family of attacks; those that are only reported are another.
    for family in (counts, ~counts):
        tested = family & ~np.isnan(p_back)
        table.loc[tested, "p_back"] = holm(p_back[tested])
    tested = table["finding"] == ""
    table.loc[tested, "finding"] = Finding.INCONCLUSIVE.value
    table.loc[tested & (table["p_gone"] < margins.alpha), "finding"] = Finding.GONE.value
    if proven is not None:
        is_blind = ~table["attack"].isin(proven)
        table.loc[is_blind & (table["finding"] == Finding.GONE), "finding"] = Finding.UNPROVEN.value
    some = tested & (table["worst_prompt"] >= margins.hidden_recovery)
    table.loc[some, "finding"] = Finding.SOME_PROMPTS.value
    table.loc[tested & (table["p_back"] < margins.alpha), "finding"] = Finding.RECOVERED.value
    return table


def _attack_row(cases: Sequence[Evidence], name: str, margins: Margins) -> dict[str, Any]:
    """Measure one attack; a finding of "" is left to the tests, which need all attacks."""
    row = {"attack": name, "budget": NAN, "recovery": NAN, "low": NAN, "high": NAN, "n": 0}
    row |= {"worst_prompt": NAN, "max_control": NAN, "p_gone": NAN, "finding": "", "p_back": NAN}
    cases_run = [case for case in cases if name in case.attacks]
    tried = [case for case in cases_run if (case.table["attack"] == name).any()]
    try:
        by_fact = _recoveries_by_fact(tried, name, margins)
    except NotFiniteError:
        by_fact = None
    if len(cases_run) < len(cases):
        return row | {"finding": Finding.NOT_RUN.value}
    if by_fact is None:
        return row | {"finding": Finding.INCONCLUSIVE.value}
    if not by_fact:
        blocked = any(name in case.not_applicable for case in cases_run)
        finding = Finding.NOT_APPLICABLE if blocked else Finding.NOT_KNOWN
        return row | {"finding": finding.value}
    single_fact = len(cases) == 1
    recoveries = by_fact[0] if single_fact else _over_facts(by_fact)
    p_values = [_p_values(r, margins) for r in recoveries]
    largest = max(recoveries, key=lambda r: r.edited.mean())
    interval = mean_interval(linearized_ratio(largest.edited, largest.known))
    return row | {
        "budget": largest.budget,
        "recovery": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "worst_prompt": _worst_prompt(by_fact, name),
        "max_control": largest.max_control(),
        # Gone has to be shown at every budget (an intersection–union test); for "comes back" one
        # budget is enough, so that p is corrected for their number (Bonferroni).
        "p_gone": max(gone for gone, _ in p_values),
        "p_back": min(1.0, len(p_values) * min(back for _, back in p_values)),
    }


def _recoveries_by_fact(
    cases: Sequence[Evidence], name: str, margins: Margins
) -> list[list[Recovery]]:
    """Compute each fact's recovery ratios; facts of which the original knows nothing drop out."""
    by_fact = []
    for case in cases:
        try:
            by_fact.append(recovery_ratios(case, name, min_known_gap=margins.min_known_gap))
        except NothingKnownError:
            continue
    return by_fact


def _over_facts(by_fact: Sequence[list[Recovery]]) -> list[Recovery]:
    """Aggregate over facts: one mean recovery a budget, or one in all if facts set the budget.

    Budgets at which fewer than `MIN_UNITS` facts can be recovered are left out, unless all are.
    """
    several_budgets = any(len(recoveries) > 1 for recoveries in by_fact)
    by_budget: dict[float, list[Recovery]] = {}
    for recovery in (r for recoveries in by_fact for r in recoveries):
        by_budget.setdefault(recovery.budget if several_budgets else 0.0, []).append(recovery)
    groups = [rs for rs in by_budget.values() if len(rs) >= MIN_UNITS] or list(by_budget.values())
    return [
        Recovery(
            group[0].budget if len({r.budget for r in group}) == 1 else NAN,
            np.array([r.edited.mean() for r in group]),
            np.ones(len(group)),
            np.zeros(0),  # the facts' own controls vary with the facts
        )
        for group in groups
    ]


def _worst_prompt(by_fact: Sequence[list[Recovery]], name: str) -> float:
    """Return the largest recovery of a single known prompt, at any budget.

    A mean hides one prompt that gives the answer away, and an attacker needs one. A prompt that
    gives no more than some prompt of a control counts as 0: that much comes without the fact. NaN
    for ranks and for fine-tuning, in which single prompts are too noisy to mean anything.
    """
    if ATTACKS[name].by_rank or ATTACKS[name].fine_tunes:
        return NAN
    prompts = [
        np.where(r.edited > r.max_control_prompt, r.edited / r.known, 0)
        for recoveries in by_fact
        for r in recoveries
        if len(r.known)
    ]
    return float(np.concatenate(prompts).max())


def _p_values(recovery: Recovery, margins: Margins) -> tuple[float, float]:
    """Test a recovery ratio against its bound, with prompts and controls as units.

    The ratio is one of two means over the same prompts, mean(edited) / mean(known). It is below a
    bound m exactly if mean(edited − m · known) is below 0 (Fieller 1954). Both are less the
    controls' mean, whose error enters (1 − m) times.

    Returns:
        (p of "less than the bound", p of "more"); 1 and 1 for too few units.
    """
    if len(recovery.edited) < MIN_UNITS:
        return 1.0, 1.0
    # There is no lower bound here: scores far below controls are tested as over-forgetting.
    m = margins.max_recovery
    return welch(recovery.edited - m * recovery.known, (1 - m) * recovery.controls)


def damage_findings(card: Scorecard | None, margins: Margins) -> pd.DataFrame:
    """Test every metric of what must stay against its bound, by one-sided t-tests.

    The units are facts for retention, and sequences, paired before and after, for perplexity.
    *Kept* is shown to be within the bound at level alpha for this metric, since all have to be
    shown (an intersection–union test). *Damaged* is shown to be outside after Holm's correction for
    the number of metrics, since one is enough. Anything else is open, as are metrics with fewer
    than `MIN_UNITS` units.

    Args:
        card: From `evaluate`; None leaves the table empty.
        margins: The bounds and the level.

    Returns:
        One row a metric, as `Verdict.damage`.
    """
    bounds = {
        "neighbours": margins.min_neighbours,
        "same_subject": margins.min_related,
        "same_target": margins.min_related,
        "must_stay": margins.min_related,
        "perplexity_change_factbook": margins.max_perplexity_change,
        "perplexity_change_other": margins.max_perplexity_change,
        "perplexity_change_chat": margins.max_perplexity_change,
    }
    columns = ["metric", "value", "low", "high", "n", "margin", "finding"]
    if card is None:
        return pd.DataFrame(columns=columns)
    names = [name for name in bounds if name in card]
    p_values = [_damage_p_values(name, card.units[name], bounds[name]) for name in names]
    p_outside = holm([outside for _, outside in p_values])
    rows = []
    for name, (p_inside, _), outside in zip(names, p_values, p_outside, strict=True):
        finding = Damage.INCONCLUSIVE
        if p_inside < margins.alpha:
            finding = Damage.KEPT
        elif outside < margins.alpha:
            finding = Damage.DAMAGED
        row = {"metric": name, **vars(card[name]), "margin": bounds[name]}
        rows.append(row | {"finding": finding.value})
    return pd.DataFrame(rows, columns=columns)


def _damage_p_values(
    name: str, units: Float[np.ndarray, " n"], bound: float
) -> tuple[float, float]:
    """Test a metric's units against its bound: ratios from below, changes of the loss from above.

    Returns:
        (p of "within the bound", p of "outside"); 1 and 1 for too few units.
    """
    if len(units) < MIN_UNITS:
        return 1.0, 1.0
    if name.startswith("perplexity_change"):
        # Units are differences of log perplexity, so the relative bound becomes log(1 + bound).
        p_inside, p_outside, _ = tost(units, low=-np.inf, high=float(np.log1p(bound)))
    else:
        p_inside, _, p_outside = tost(units, low=bound, high=np.inf)
    return p_inside, p_outside


def over_forgetting_objection(cases: Sequence[Evidence], margins: Margins) -> str:
    """Say that the target is suppressed below control facts, or that this can't be excluded.

    Returns:
        A sentence; empty if over-forgetting is excluded, or paraphrases were not run.
    """
    cases = [case for case in cases if "paraphrases" in case.attacks]
    if not cases:
        return ""
    try:
        differences = [over_forgetting(case) for case in cases]
    except NotFiniteError:
        return "A scar can't be excluded: scores of paraphrases are not finite."
    units = differences[0] if len(cases) == 1 else np.array([d.mean() for d in differences])
    bound = float(np.log(margins.max_over_forgetting))
    p_excluded = p_shown = 1.0
    if len(units) >= MIN_UNITS:
        p_excluded, _, p_shown = tost(units, low=-bound, high=np.inf)
    factor = np.exp(-units.mean())
    if p_shown < margins.alpha:
        return f"A scar: the target is {factor:.0f} times less likely than for control facts."
    if p_excluded >= margins.alpha:
        return (
            f"A scar can't be excluded: the target is {1 / factor:.2g} times as likely as for "
            "control facts, and there are too few prompts to tell this from "
            f"1 / {margins.max_over_forgetting:g}."
        )
    return ""
