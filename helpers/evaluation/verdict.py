"""Is it gone, or only hidden? A verdict on the evidence of attacks, with bounds stated beforehand.

Attacks are tested in `helpers.evaluation.findings`, on the scale of `helpers.evaluation.recovery`:
0 is the score of control facts, 1 that of the original. Here the findings become a label, and
sentences that give its reasons.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pandas as pd

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.attacks.registry import AttackKind, checked_names
from helpers.evaluation.battery import Evidence
from helpers.evaluation.findings import (
    Damage,
    Finding,
    Margins,
    attack_findings,
    damage_findings,
    over_forgetting_objection,
)
from helpers.evaluation.scorecard import Scorecard
from helpers.stats.equivalence import MIN_UNITS

__all__ = ["Damage", "Finding", "Label", "Margins", "Verdict", "verdict"]

ON_TEXT = "perplexity"  # metrics whose names begin like this are about text, others about facts


class Label(StrEnum):
    """Conclusion of a verdict.

    `PRESENT` means that nothing was unlearned. `SUPPRESSED` is a kind of hidden: the weights still
    compute the fact, and a part of the model that can be cut off keeps it from being said.
    """

    VERIFIED = "verified"
    HIDDEN = "hidden"
    SUPPRESSED = "suppressed"
    PRESENT = "present"
    DAMAGED = "damaged"
    PARTIAL = "partial"


@dataclass(frozen=True)
class Verdict:
    """The conclusion and its reasons.

    Attributes:
        label: A `Label`.
        reasons: In sentences.
        attacks: One row an attack: attack, budget (at which it recovers most; NaN where facts set
            it and differ), recovery (the ratio there), low, high, n, worst_prompt (the largest
            recovery of a single known prompt), max_control (the largest recovery of a control),
            p_gone (the largest of all budgets), finding (a
            `Finding`), p_back (corrected for budgets and attacks). An attack with scores that are
            not finite is inconclusive, without numbers.
        damage: One row a metric: metric, value, low, high, n, margin, finding (a `Damage`, by
            tests: `helpers.evaluation.findings.damage_findings`).
        margins: The bounds, as stated.
    """

    label: Label
    reasons: list[str]
    attacks: pd.DataFrame
    damage: pd.DataFrame
    margins: Margins = field(default_factory=Margins)

    @property
    def word(self) -> str:
        """Return the label; this was its name until 2026-11."""
        return self.label

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for an artifact."""
        return {
            "verdict": str(self.label),
            "reasons": self.reasons,
            "margins": vars(self.margins),
            "attacks": self.attacks.to_dict("records"),
            "damage": self.damage.to_dict("records"),
        }

    def __str__(self) -> str:
        """Return the label and the reasons."""
        return f"{self.label}: {' '.join(self.reasons)}"


def verdict(
    evidence: Evidence | Sequence[Evidence],
    card: Scorecard | None = None,
    *,
    margins: Margins | None = None,
    required: Sequence[str] | None = None,
    proven: Collection[str] | None = None,
) -> Verdict:
    """Conclude from the results of attacks and the scorecard.

    *Verified* needs every required attack to be run, and each shown to recover less than the bound
    at every budget (an intersection–union test, which needs no correction, Berger 1982), and no
    single prompt to come back by half. An attack that cannot be tried on the edited model stands
    against it; one under which the original knows nothing does not, but of each `AttackKind` one
    has to have been shown to find nothing. It needs over-forgetting to be excluded, and every
    metric of damage shown to be within its bound, among them one of retention and one of
    perplexity. An intervention leaves the weights as they were, and is never verified.

    *Hidden* needs one attack that recovers at least half, and more than the bound at the level
    alpha after correction for its budgets (Bonferroni's) and for attacks (Holm's). It is called
    *suppressed* if an attack does that shows the weights to compute the fact as before
    (`Attack.shows_suppression`). *Present* is hidden without any attack. *Damaged* needs one metric
    shown to be outside its bound, after correction for the number of metrics (Holm's). Anything
    else is *partial*.

    Args:
        evidence: From `battery`: of one fact, with prompts as the units, or of several, with facts
            as the units.
        card: From `evaluate`, for damage; without it nothing can be verified.
        margins: Equivalence bounds, stated beforehand.
        required: Attacks without which nothing is verified; by default all that count.
        proven: Attacks that were shown to see a known-hidden fact at these budgets
            (`helpers.evaluation.meta.hidden_models`); others do not count as finding nothing. None
            if that was not tried.

    Raises:
        UserError: There is no evidence, or too few prompts.
    """
    margins = margins or Margins()
    cases = [evidence] if isinstance(evidence, Evidence) else list(evidence)
    if not cases:
        raise UserError("There is no evidence: run the battery first.")
    if required is None:
        required = [name for name, entry in ATTACKS.items() if entry.counts_for_verdict]
    attacks = attack_findings(cases, checked_names(required), margins, proven)
    damage = damage_findings(card, margins)
    judged = attacks[attacks["attack"].map(lambda name: ATTACKS[name].counts_for_verdict)]
    recovered = judged["finding"] == Finding.RECOVERED
    successful = judged[recovered & (judged["recovery"] >= margins.hidden_recovery)]
    objections = [
        *_attack_objections(judged, successful),
        *_kind_objections(judged),
        *_intervention_objections(cases),
        *_damage_objections(damage),
        *_not_finite(judged),
    ]
    if scar := over_forgetting_objection(cases, margins):
        objections.append(scar)
    label = _label(successful, damage, objections)
    reasons = [*_successes(successful, margins), *_damages(damage)]
    if label == Label.VERIFIED:
        n_gone = int((judged["finding"] == Finding.GONE).sum())
        reasons.append(
            f"All {n_gone} attacks that could recover the fact from the original recover less than "
            f"{margins.max_recovery:.0%} of it from the edited model, beyond their controls."
        )
    reasons.append(_tried(judged))
    return Verdict(label, reasons + objections, attacks, damage, margins)


def _label(successful: pd.DataFrame, damage: pd.DataFrame, objections: Sequence[str]) -> Label:
    """Conclude the label: what an attack recovers counts before damage, and both before doubts."""
    if "paraphrases" in successful["attack"].to_list():
        return Label.PRESENT
    if any(ATTACKS[name].shows_suppression for name in successful["attack"]):
        return Label.SUPPRESSED
    if len(successful):
        return Label.HIDDEN
    if (damage["finding"] == Damage.DAMAGED).any():
        return Label.DAMAGED
    return Label.PARTIAL if objections else Label.VERIFIED


def _successes(successful: pd.DataFrame, margins: Margins) -> list[str]:
    """Name the attacks that recover at least half; plain prompts count before all others."""
    recovery = successful.set_index("attack")["recovery"]
    if "paraphrases" in recovery:
        return [f"Without any attack {recovery['paraphrases']:.0%} of the fact is there."]
    if len(recovery):
        names = ", ".join(f"{name} ({ratio:.0%})" for name, ratio in recovery.items())
        return [f"Attacks that bring back at least {margins.hidden_recovery:.0%}: {names}."]
    return []


def _damages(damage: pd.DataFrame) -> list[str]:
    """Name the metrics outside their bounds."""
    damaged = damage[damage["finding"] == Damage.DAMAGED]
    values = ", ".join(f"{row.metric} {row.value:.3f}" for row in damaged.itertuples())
    return [f"Outside the margins of damage: {values}."] if values else []


def _attack_objections(judged: pd.DataFrame, successful: pd.DataFrame) -> list[str]:
    """Name the attacks that were not shown to recover nothing, besides the successful ones."""
    others = judged[~judged["attack"].isin(successful["attack"])]
    sentences = {
        Finding.RECOVERED: "Some comes back under {}.",
        Finding.SOME_PROMPTS: "Single prompts come back by half under {}.",
        Finding.NOT_APPLICABLE: "Could not be tried on the edited model: {}.",
        Finding.INCONCLUSIVE: "Not shown to be gone under {}.",
        Finding.NOT_RUN: "Not run: {}.",
    }
    objections = []
    for finding, sentence in sentences.items():
        names = others[others["finding"] == finding]["attack"].to_list()
        if names:
            objections.append(sentence.format(", ".join(names)))
    plain = judged[judged["attack"] == "paraphrases"]
    if plain["finding"].isin([Finding.NOT_KNOWN, Finding.NOT_APPLICABLE]).any():
        objections.append(
            f"Too few paraphrases: a verdict needs {MIN_UNITS} that the original knows."
        )
    return objections


def _kind_objections(judged: pd.DataFrame) -> list[str]:
    """Name the kinds of attack of which none was shown to find nothing."""
    gone = judged[judged["finding"] == Finding.GONE]["attack"]
    kinds = {ATTACKS[name].kind for name in gone}
    missing = [kind.value for kind in AttackKind if kind not in kinds]
    return [f"No attack was shown to find nothing by {', '.join(missing)}."] if missing else []


def _intervention_objections(cases: Sequence[Evidence]) -> list[str]:
    """Say that an intervention removes nothing from the weights."""
    if any(case.is_intervention for case in cases):
        return ["An intervention leaves the weights as they were: without it the fact is there."]
    return []


def _tried(judged: pd.DataFrame) -> str:
    """Count the attacks that could have recovered something, and name those without a say."""
    no_say = [Finding.NOT_KNOWN, Finding.NOT_APPLICABLE, Finding.NOT_RUN, Finding.UNPROVEN]
    n_tried = int((~judged["finding"].isin(no_say)).sum())
    sentence = f"{n_tried} of {len(judged)} attacks were tried with a chance to find it."
    for finding, text in (
        (Finding.NOT_KNOWN, " The original itself does not know the fact under {}."),
        (Finding.UNPROVEN, " These see no model that hides the fact, so they don't count: {}."),
    ):
        names = judged[judged["finding"] == finding]["attack"].to_list()
        sentence += text.format(", ".join(names)) if names else ""
    return sentence


def _damage_objections(damage: pd.DataFrame) -> list[str]:
    """Name what was not measured, and metrics that are shown neither inside nor outside."""
    objections = []
    on_text = {name.startswith(ON_TEXT) for name in damage["metric"]}
    for kind, is_text in (("what has to stay", False), ("text", True)):
        if is_text not in on_text:
            objections.append(f"Damage to {kind} was not measured.")
    inconclusive = damage[damage["finding"] == Damage.INCONCLUSIVE]["metric"].to_list()
    if inconclusive:
        objections.append(f"Damage can't be excluded by so few: {', '.join(inconclusive)}.")
    return objections


def _not_finite(judged: pd.DataFrame) -> list[str]:
    """Name the attacks without a ratio, because scores are not finite."""
    inconclusive = judged["finding"] == Finding.INCONCLUSIVE
    names = ", ".join(judged[inconclusive & judged["recovery"].isna()]["attack"])
    return [f"Scores that are not finite (NaN), which show nothing: {names}."] if names else []
