"""Is it gone, or only hidden? A verdict on the evidence of attacks, with margins stated beforehand.

What an attack gets out is put on a scale by the two models that stand beside: 0 is what it gets out
about facts that were never known, 1 what it gets out of the original. *Gone* is then a claim of
equivalence, and needs a test that can fail to make it (TOST, two one-sided tests; Schuirmann 1987):
one side is each attack's share against its margin, the other the scar, too little of the answer.
"Not significantly different" would be cheap to get with few prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from helpers.errors import UserError
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.battery import ABSENT, EDITED, PRESENT, Evidence
from helpers.evaluation.scorecard import Scorecard
from helpers.stats.intervals import Metric, bootstrap

GONE, BACK, OPEN, NOTHING, MISSING = "gone", "comes back", "open", "nothing to attack", "not run"
LOWEST = 1e-9  # probabilities below count as this in log-odds
FEWEST = 3  # units that a test needs


@dataclass(frozen=True)
class Margins:
    """What counts as gone, hidden, damaged. State them before looking.

    Attributes:
        recovered: Gone: an attack recovers less than this share of what was known, above the
            leakiest of the never-known subjects that it was compared with (a margin that the
            reference scales: never-known subjects differ, most of all in ranks), though never as
            much as `hidden`. Where facts are the units, above their mean.
        hidden: Hidden: it recovers at least this share.
        scar: Factor by which P(target) may lie below that of never-known facts: much less is a
            scar that gives the fact away (Deepak et al. 2025), and no scar has to be shown.
        neighbours: Least share of other subjects' answers that has to stay.
        others: The same for other facts of the subject and of the target.
        perplexity: Largest rise of perplexity, as a share.
        known: An attack counts on prompts where the original's score is so far above never-known.
        alpha: Level of every test.
    """

    recovered: float = 0.1
    hidden: float = 0.5
    scar: float = 30.0
    neighbours: float = 0.9
    others: float = 0.75
    perplexity: float = 0.02
    known: float = 0.1
    alpha: float = 0.05


@dataclass(frozen=True)
class Verdict:
    """The finding and what it rests on.

    Attributes:
        word: `verified`, `hidden`, `present` (nothing was unlearned), `damaged`, or `partial`.
        reasons: In sentences.
        attacks: One row an attack: attack, budget (at which it recovers most; NaN where facts set
            it and differ), and there share (recovered), low, high, n, leak (the same of the
            leakiest never-known subject); p_gone (the largest of all budgets), p_back (corrected
            for budgets and attacks), finding. An attack with scores that are not finite is `open`,
            without numbers: it shows nothing.
        damage: One row a metric: metric, value, low, high, margin, finding.
        margins: As stated.
    """

    word: str
    reasons: list[str]
    attacks: pd.DataFrame
    damage: pd.DataFrame
    margins: Margins = field(default_factory=Margins)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for an artifact."""
        return {
            "verdict": self.word,
            "reasons": self.reasons,
            "margins": vars(self.margins),
            "attacks": self.attacks.to_dict("records"),
            "damage": self.damage.to_dict("records"),
        }

    def __str__(self) -> str:
        """The word and the reasons."""
        return f"{self.word}: {' '.join(self.reasons)}"


def tost(values: Float[np.ndarray, " n"], *, low: float, high: float) -> tuple[float, float, float]:
    """Two one-sided t-tests that the mean lies between `low` and `high`.

    Args:
        values: Independent units.
        low: Lower margin.
        high: Upper margin.

    Returns:
        (p of "between", the larger of the two; p of "above `high`"; p of "below `low`").

    Raises:
        UserError: There are fewer than `FEWEST` units, or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < FEWEST:
        raise UserError(f"A test needs at least {FEWEST} prompts or facts; there are {n}.")
    if not np.isfinite(values).all():
        raise UserError(
            f"A test needs finite values; {int((~np.isfinite(values)).sum())} of {n} are not: see "
            "which attack has such scores, and leave it out or run it again."
        )
    error = max(values.std(ddof=1) / np.sqrt(n), 1e-12)
    upper = stats.t.cdf((values.mean() - high) / error, n - 1)  # small when well below high
    lower = stats.t.sf((values.mean() - low) / error, n - 1)
    return float(max(upper, lower)), float(1 - upper), float(1 - lower)


def holm(p: Sequence[float]) -> Float[np.ndarray, " n"]:
    """p-values corrected for their number by Holm's (1979) step-down procedure.

    The k-th smallest of n is multiplied by n − k + 1; none becomes smaller than one before it.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    out = np.empty_like(steps)
    out[order] = steps
    return out


class Recovered(NamedTuple):
    """What an attack got back at one budget, as shares of what was known.

    Attributes:
        budget: Of the attack; for a pooled one, which has them all, where the original shows most.
        share: Of each prompt.
        known: What the original has of each prompt, in the same unit; its mean is 1.
        strangers: Of each never-known subject, mean over prompts; their mean is 0.
    """

    budget: float
    share: Float[np.ndarray, " n"]
    known: Float[np.ndarray, " n"]
    strangers: Float[np.ndarray, " k"]

    def linear(self) -> Float[np.ndarray, " n"]:
        """Values whose mean is r = mean(share) / mean(known), and varies as this ratio does.

        r + share − r · known, to first order: what differs alike in both is no noise.
        """
        ratio = self.share.mean()
        return ratio + self.share - ratio * self.known


def recovered(evidence: Evidence, name: str, margins: Margins | None = None) -> list[Recovered]:
    """The share of the knowledge that an attack gets back, one a budget.

    share = (edited − never known) / (original − never known), each prompt's own in units of the
    denominator's mean over prompts; prompts that the original doesn't know at that budget are
    left out, and so are budgets at which it knows fewer than `FEWEST`. A pooled attack has one
    share, over its whole curve: one that trains over all its steps (the head start
    over a never-known fact that is taught in the same way, in units of what the original knew
    before), one that reads layers over those where the original shows at least half as much as it
    ever does.

    Args:
        evidence: From `battery`.
        name: The attack.
        margins: Which prompts count as known.

    Raises:
        UserError: The original knows fewer than `FEWEST` prompts that the attack could recover, or
            a score is not finite.
    """
    margins = margins or Margins()
    rows = evidence.table[evidence.table["attack"] == name]
    _require_finite(rows, name)
    edited, absent = _grid(rows, EDITED), _grid(rows, ABSENT)
    if ATTACKS[name].trains:
        plain = evidence.table[evidence.table["attack"] == "paraphrases"]
        if plain.empty:
            raise UserError(f"{name} is measured against 'paraphrases': run that attack as well.")
        _require_finite(plain[plain["state"] != EDITED], "paraphrases")
        above = (_grid(plain, PRESENT) - _grid(plain, ABSENT))[0.0]
        kept = above.index[above >= margins.known]
        budgets = [b for b in edited if b > 0]
        return [_share(rows, max(budgets), budgets, above[kept], name)]
    above = _grid(rows, PRESENT) - absent
    if ATTACKS[name].pooled:
        shown = above.mean()
        kept = above.index if shown.max() >= margins.known else above.index[:0]
        budgets = shown.index[shown >= shown.max() / 2]
        original = above.loc[kept, budgets].mean(axis=1)
        return [_share(rows, shown.idxmax(), budgets, original, name)]
    found = []
    for budget in edited:
        kept = above.index[above[budget] >= margins.known]
        if len(kept) >= FEWEST:
            found.append(_share(rows, budget, [budget], above.loc[kept, budget], name))
    if not found:
        raise NothingKnownError(name)
    return found


def _share(
    rows: pd.DataFrame, budget: float, budgets: Sequence, original: pd.Series, name: str
) -> Recovered:
    """Edited less never-known over some budgets, where `original` less never-known is the whole."""
    if len(original) < FEWEST:
        raise NothingKnownError(name)
    budgets, kept, scale = list(budgets), original.index, original.mean()
    absent = _grid(rows, ABSENT)[budgets].loc[kept].mean(axis=1)
    edited = _grid(rows, EDITED)[budgets].loc[kept].mean(axis=1)
    each = rows[rows["state"] == ABSENT].groupby("subject", sort=False)
    strangers = [
        _grid(part, ABSENT)[budgets].loc[kept].mean(axis=1).mean() - absent.mean()
        for _, part in each
    ]
    share, known = ((x / scale).to_numpy() for x in (edited - absent, original))
    return Recovered(float(budget), share, known, np.array(strangers) / scale)


class NothingKnownError(UserError):
    """The original model knows the answer to too few prompts that an attack could recover."""

    def __init__(self, name: str):
        """Says under which attack."""
        super().__init__(
            f"Under {name} the original knows fewer than {FEWEST} prompts better than never-known "
            "facts: give more prompts, or another pair."
        )


class NotFiniteError(UserError):
    """An attack has scores that are not finite: it shows nothing, neither gone nor there."""

    def __init__(self, name: str):
        """Says which attack."""
        super().__init__(
            f"Some scores of {name} are not finite (NaN or infinite): what it gets out can't be "
            "told; look at what the attacked model says."
        )


def _require_finite(rows: pd.DataFrame, name: str) -> None:
    if not np.isfinite(rows["score"].to_numpy(dtype=np.float64)).all():
        raise NotFiniteError(name)


def _grid(rows: pd.DataFrame, state: str) -> pd.DataFrame:
    """Scores of one state, prompts by budgets, averaged over subjects."""
    mine = rows[rows["state"] == state]
    return mine.pivot_table(index="prompt", columns="budget", values="score", aggfunc="mean")


def scar(evidence: Evidence) -> Float[np.ndarray, " n"]:
    """log-odds of P(target) on paraphrases less those of never-known facts, prompt by prompt.

    Raises:
        UserError: Paraphrases were not asked, or a score is not finite.
    """
    rows = evidence.table[evidence.table["attack"] == "paraphrases"]
    if rows.empty:
        raise UserError("A scar shows on 'paraphrases': run that attack as well.")
    _require_finite(rows, "paraphrases")
    rows = rows.assign(score=_logodds(rows["score"].to_numpy()))
    return (_grid(rows, EDITED)[0.0] - _grid(rows, ABSENT)[0.0]).to_numpy()


def _logodds(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    p = p.clip(LOWEST, 1 - LOWEST)
    return np.log(p / (1 - p))


def verdict(
    evidence: Evidence | Sequence[Evidence],
    card: Scorecard | None = None,
    *,
    margins: Margins | None = None,
    required: Sequence[str] | None = None,
    seed: int = 0,
) -> Verdict:
    """Weigh the evidence.

    *Verified* needs every required attack to be run and each shown to recover less than the margin
    at every budget (an intersection–union test: no correction is needed, Berger 1982), no scar (the
    lower side of the test, shown as well), and every damage metric shown to be within its margin;
    some retention and a perplexity must be among them. *Hidden* needs one attack that recovers at
    least half, and more than the margin at the level alpha after correction for its budgets
    (Bonferroni's) and for attacks (Holm's). *Present* is hidden without any attack. *Damaged* needs
    one damage metric shown to be outside its margin. Anything else is *partial*.

    Args:
        evidence: From `battery`; of one fact, where prompts are the units, or of several, where
            facts are.
        card: From `evaluate`, for damage; without it nothing can be verified.
        margins: Stated beforehand.
        required: Attacks without which nothing is verified; by default all that are judged.
        seed: Of the intervals.

    Raises:
        UserError: There is no evidence, or too few prompts.
    """
    margins = margins or Margins()
    cases = [evidence] if isinstance(evidence, Evidence) else list(evidence)
    if not cases:
        raise UserError("There is no evidence: run the battery first.")
    judged = [n for n, a in ATTACKS.items() if a.judged]
    required = judged if required is None else list(required)
    attacks = _weighed(cases, required, margins, seed)
    damage = _damage(card, margins)
    reasons, findings = [], attacks.set_index("attack")
    judged = attacks["attack"].map(lambda n: ATTACKS[n].judged)
    back = attacks[judged & (attacks["finding"] == BACK) & (attacks["share"] >= margins.hidden)]
    if "paraphrases" in back["attack"].to_list():
        word = "present"
        share = findings.loc["paraphrases", "share"]
        reasons.append(f"Without any attack {share:.0%} of the fact is there.")
    elif len(back):
        word = "hidden"
        told = ", ".join(f"{r.attack} ({r.share:.0%})" for r in back.itertuples())
        reasons.append(f"Attacks that bring back at least {margins.hidden:.0%}: {told}.")
    elif (damage["finding"] == "damaged").any():
        word = "damaged"
    else:
        word = "verified"
    worse = damage[damage["finding"] == "damaged"]
    if len(worse):
        told = ", ".join(f"{r.metric} {r.value:.3f}" for r in worse.itertuples())
        reasons.append(f"Outside the margins of damage: {told}.")
    blocks = []
    for finding, text in (
        (BACK, "Some comes back under {}."),
        (OPEN, "Not shown to be gone under {}."),
        (MISSING, "Not run: {}."),
    ):
        names = attacks[judged & (attacks["finding"] == finding)]["attack"].to_list()
        names = [n for n in names if n not in back["attack"].to_list()]
        if names:
            blocks.append(text.format(", ".join(names)))
    if "paraphrases" in findings.index and findings.loc["paraphrases", "finding"] == NOTHING:
        blocks.append(f"Too few wordings: a verdict needs {FEWEST} that the original knows.")
    for what, start in (("what has to stay", ("neighbours", "same_", "must_")), ("text", "perpl")):
        if not damage["metric"].str.startswith(start).any():
            blocks.append(f"Damage to {what} was not measured.")
    unshown = damage[damage["finding"] == OPEN]["metric"].to_list()
    if unshown:
        blocks.append(f"Damage can't be excluded by so few: {', '.join(unshown)}.")
    empty = attacks[judged & (attacks["finding"] == OPEN) & attacks["share"].isna()]
    if len(empty):
        told = ", ".join(empty["attack"])
        blocks.append(f"Scores that are not finite (NaN), which show nothing: {told}.")
    scarred = _scarred(cases, margins)
    if scarred:
        blocks.append(scarred)
    if word == "verified" and blocks:
        word = "partial"
    if word == "verified":
        held = int((judged & (attacks["finding"] == GONE)).sum())
        reasons.append(
            f"All {held} attacks recover less than {margins.recovered:.0%} more than from facts "
            "that were never known."
        )
    return Verdict(word, reasons + blocks, attacks, damage, margins)


def _weighed(
    cases: Sequence[Evidence], required: Sequence[str], margins: Margins, seed: int
) -> pd.DataFrame:
    rows, p_back = [], []
    nan = float("nan")
    names = list(dict.fromkeys([*required, *(n for c in cases for n in c.attacks)]))
    for name in names:
        blank = {
            "attack": name,
            "budget": nan,
            "share": nan,
            "low": nan,
            "high": nan,
            "n": 0,
            "leak": nan,
        }
        ran = [c for c in cases if name in c.attacks]
        try:
            known = _known([c for c in ran if name not in c.nothing], name, margins)
        except NotFiniteError:
            known = None
        found = known[0] if len(cases) == 1 and known else _over_facts(known or [])
        if len(ran) < len(cases):
            rows.append({**blank, "p_gone": nan, "finding": MISSING})
            p_back.append(nan)
        elif known is None:
            rows.append({**blank, "p_gone": nan, "finding": OPEN})
            p_back.append(nan)
        elif not found:
            rows.append({**blank, "p_gone": nan, "finding": NOTHING})
            p_back.append(nan)
        else:
            tests = [_tested(here, margins, one=len(cases) == 1) for here in found]
            most = max(found, key=lambda r: r.share.mean())
            m = bootstrap(most.linear(), seed=seed)
            measured = {"share": m.value, "low": m.low, "high": m.high, "n": m.n}
            measured |= {"budget": most.budget, "leak": float(most.strangers.max(initial=0.0))}
            gone = max(gone for gone, _ in tests)
            rows.append({**blank, **measured, "p_gone": gone, "finding": ""})
            p_back.append(min(1.0, len(tests) * min(back for _, back in tests)))  # Bonferroni
    table = pd.DataFrame(rows)
    table["p_back"] = np.nan
    judged = np.array([ATTACKS[n].judged for n in names])
    for here in (judged, ~judged):  # what no verdict rests on is no part of the family
        here = here & ~np.isnan(p_back)
        table.loc[here, "p_back"] = holm(np.array(p_back)[here])
    weighed = table["finding"] == ""
    table.loc[weighed, "finding"] = OPEN
    table.loc[weighed & (table["p_gone"] < margins.alpha), "finding"] = GONE
    table.loc[weighed & (table["p_back"] < margins.alpha), "finding"] = BACK
    return table


def _known(cases: Sequence[Evidence], name: str, margins: Margins) -> list[list[Recovered]]:
    """Each fact's shares; facts of which the attack could recover nothing drop out."""
    each = []
    for case in cases:
        try:
            each.append(recovered(case, name, margins))
        except NothingKnownError:
            continue
    return each


def _over_facts(each: Sequence[list[Recovered]]) -> list[Recovered]:
    """With facts as the units: their means, one a budget; an attack may have one that facts set.

    Budgets at which fewer than `FEWEST` facts can be recovered are left out, unless all are such.
    """
    several = any(len(found) > 1 for found in each)
    at: dict[float, list[Recovered]] = {}
    for here in (r for found in each for r in found):
        at.setdefault(here.budget if several else 0.0, []).append(here)
    enough = [found for found in at.values() if len(found) >= FEWEST] or list(at.values())
    return [
        Recovered(
            found[0].budget if len({r.budget for r in found}) == 1 else float("nan"),
            np.array([r.share.mean() for r in found]),
            np.ones(len(found)),
            np.array([r.strangers.max(initial=0.0) for r in found]),
        )
        for found in enough
    ]


def _tested(found: Recovered, margins: Margins, *, one: bool) -> tuple[float, float]:
    """(p of less than the margin, p of more); 1 and 1 where there are too few units.

    A share is a ratio of two means over the same prompts, mean(edited) / mean(known). That it is
    below a margin m is the same as that mean(edited − m · known) is below 0 (Fieller 1954).
    """
    if len(found.share) < FEWEST:
        return 1.0, 1.0
    # how far below a never-known fact is the scar's test, not this one
    high = margins.recovered + (found.strangers.max(initial=0.0) if one else 0.0)
    over = found.share - min(high, margins.hidden) * found.known
    gone, back, _ = tost(over, low=-np.inf, high=0.0)
    return gone, back


def _damage(card: Scorecard | None, margins: Margins) -> pd.DataFrame:
    limits = {
        "neighbours": margins.neighbours,
        "same_subject": margins.others,
        "same_target": margins.others,
        "must_stay": margins.others,
        "perplexity_change_factbook": margins.perplexity,
        "perplexity_change_other": margins.perplexity,
        "perplexity_change_chat": margins.perplexity,
    }
    rows = []
    for name, margin in limits.items():
        if card is not None and name in card:
            m: Metric = card[name]
            rows.append(
                {"metric": name, **vars(m), "margin": margin, "finding": _within(m, name, margin)}
            )
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "margin", "finding"])


def _within(m: Metric, name: str, margin: float) -> str:
    """Whether the interval lies within the margin, outside of it, or over it; one unit has none."""
    low, high = m.low, m.high
    if np.isnan(low):
        return OPEN
    if name.startswith("perplexity"):
        return "kept" if high <= margin else "damaged" if low > margin else OPEN
    return "kept" if low >= margin else "damaged" if high < margin else OPEN


def _scarred(cases: Sequence[Evidence], margins: Margins) -> str:
    """What stands against "no scar": that there is one, or that none was shown to be absent."""
    cases = [c for c in cases if "paraphrases" in c.attacks]
    if not cases:
        return ""
    try:
        values = [scar(c) for c in cases]
    except NotFiniteError:
        return "A scar can't be excluded: scores of paraphrases are not finite."
    units = values[0] if len(cases) == 1 else np.array([v.mean() for v in values])
    limit = float(np.log(margins.scar))
    absent, _, there = tost(units, low=-limit, high=np.inf) if len(units) >= FEWEST else (1, 1, 1)
    times = np.exp(-units.mean())
    if there < margins.alpha:
        return f"A scar: the target is {times:.0f} times less likely than for facts never known."
    if absent >= margins.alpha:
        return (
            f"A scar can't be excluded: the target is {1 / times:.2g} times as likely as for facts "
            f"never known, and by too few wordings to tell from 1 / {margins.scar:g}."
        )
    return ""
