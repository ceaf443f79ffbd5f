"""Verification of every method against the oracle: one table of differences, and their findings.

Equivalence bounds are stated here, before anything is measured. A method is equivalent to the
oracle when all of its differences are shown to lie within the bounds (two one-sided tests,
Schuirmann 1987). Otherwise its finding is the first difference that is shown to lie outside.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.method_choice import FAMILIES, editing_methods
from helpers.evaluation.metrics.truth_ratio import forget_quality
from helpers.facts import ConceptPair
from helpers.methods import METHODS, unlearn
from helpers.organism.exact import (
    OTHER_GROUPS,
    EvalOutputs,
    EvalSet,
    compute_outputs,
    divergences,
    eval_set,
)
from helpers.organism.family import Family
from helpers.organism.relearning import LR, learning_curve, learning_curve_auc
from helpers.stats.equivalence import t_interval

ORIGINAL, SEED_CONTROL = "original", "oracle of another seed"


class Finding(StrEnum):
    """Finding about a method; the values are the words of the book's tables."""

    EQUIVALENT = "as if never known"
    OVER_FORGETTING = "scar"
    STILL_KNOWN = "still known"
    ABOVE_ORACLE = "more than never known"
    DAMAGED = "damaged"
    RELEARNED_SLOWER = "learned slower"
    RELEARNED_FASTER = "comes back faster"
    INCONCLUSIVE = "open"
    TOO_FEW = "too few to tell"


@dataclass(frozen=True)
class Margins:
    """Equivalence bounds: largest differences from the oracle that count as none.

    Attributes:
        log_odds: Of the target's log-odds, in nats: odds within a factor of ten.
        learning: Of the area under the learning curve.
        damage: Of the divergence elsewhere, as a multiple of that between two originals.
        alpha: Level of each test.
    """

    log_odds: float = float(np.log(10))
    learning: float = 0.1
    damage: float = 1.0
    alpha: float = 0.05


@dataclass(frozen=True)
class Measurement:
    """Outputs of a model, and its learning curve of the fact."""

    outputs: EvalOutputs
    curve: pd.DataFrame

    @classmethod
    def of(cls, model: LanguageModel, evals: EvalSet) -> "Measurement":
        """Measure a model as it is, with the edits that are applied."""
        return cls(compute_outputs(model, evals), learning_curve(model, evals.pair))


@dataclass(frozen=True)
class _Row:
    """A model that is compared with the oracle.

    Attributes:
        method: Name of the method, `ORIGINAL` or `SEED_CONTROL`.
        family: Family of the method, or `reference`.
        measurement: Its measurement; None if the method refused the fact.
        refused: Why it refused; None for a reference.
    """

    method: str
    family: str
    measurement: Measurement | None
    refused: str | None = None


def verify(
    family: Family, methods: Mapping[int, Mapping[str, Mapping[str, Any]]], *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make each edit on each original of a family and compare it with its own oracle.

    Args:
        family: Originals and oracles.
        methods: For each of the family's seeds name → hyperparameters: SAEs are a model's own.
        seed: Seed of the methods and of the prompts.

    Returns:
        Differences: one row a fact, seed and method (and for `ORIGINAL`, and for `SEED_CONTROL`,
        the oracles of the other seeds): subject, target, training (the seed), method, family,
        refused, chance (of a guess), probability, log_odds, rank, ks (p-value of truth ratios
        against all oracles), n_ks (truth ratios compared), js_<group> (divergence from the oracle),
        learning_curve_auc, and `oracle_...` for the oracle's own probability, log_odds, rank and
        learning_curve_auc.
        Curves: subject, training, method, step, probability; the oracle's as method `oracle`.
    """
    rows, curves = [], []
    for pair in family.pairs:
        evals = eval_set(family.recipe.fact_set(), pair, seed=seed)
        oracles = {s: Measurement.of(family.oracle(pair, s), evals) for s in family.seeds}
        oracle_ratios = np.concatenate([o.outputs.truth_ratios() for o in oracles.values()])
        for s in family.seeds:
            model = family.original(s)
            compared = [_Row(ORIGINAL, "reference", Measurement.of(model, evals))]
            compared += [_Row(SEED_CONTROL, "reference", o) for t, o in oracles.items() if t != s]
            compared += list(_edits(model, evals, methods[s], seed))
            names = {"subject": pair.subject, "training": s}
            curves.append(oracles[s].curve.assign(**names, method="oracle"))
            curves += [
                row.measurement.curve.assign(**names, method=row.method)
                for row in compared
                if row.measurement is not None and row.method != SEED_CONTROL
            ]
            rows += [
                _table_row(row, pair, s, evals.chance, oracles[s], oracle_ratios)
                for row in compared
            ]
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True)


def _table_row(
    row: _Row,
    pair: ConceptPair,
    training: int,
    chance: float,
    oracle: Measurement,
    oracle_ratios: Float[np.ndarray, " n"],
) -> dict[str, Any]:
    columns = {
        "subject": pair.subject,
        "target": pair.target,
        "training": training,
        "method": row.method,
        "family": row.family,
        "chance": chance,
    }
    if row.refused is not None:
        columns["refused"] = row.refused
    if row.measurement is not None:
        columns |= _differences(row.measurement, oracle, oracle_ratios)
    return columns


def weight_editing_methods(
    names: str = "all", saes: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """List methods that change weights, with the hyperparameters to call them with.

    Methods of training take `LR`, a tenth of the organism's own rate: their defaults are tuned for
    the pretrained model, and move this one by next to nothing.

    Args:
        names: `all`, or names separated by commas.
        saes: Folders of SAEs of the model, for the methods of surgery that need them.

    Raises:
        UserError: There is no such method.
    """
    methods = editing_methods(names, saes, families=(*FAMILIES, "training"))
    training = {n: h for n, h in methods.items() if METHODS[n].family == "training"}
    for name, hyperparameters in training.items():
        if "saes" in hyperparameters:
            del methods[name]
        elif "lr" in METHODS[name].hyperparameters():
            methods[name] = {"lr": LR}
    return methods


def _edits(
    model: LanguageModel, evals: EvalSet, methods: Mapping[str, Mapping[str, Any]], seed: int
) -> Iterator[_Row]:
    """Make, apply and measure the edit of each method."""
    for name, hyperparameters in methods.items():
        kind = METHODS[name].family
        try:
            edit = unlearn(model, evals.pair, name, seed=seed, **hyperparameters)
        except UserError as error:
            yield _Row(name, kind, None, str(error))
            continue
        with edit.applied(model):
            measurement = Measurement.of(model, evals)
        yield _Row(name, kind, measurement, "")


def _differences(
    measurement: Measurement, oracle: Measurement, oracle_ratios: Float[np.ndarray, " n"]
) -> dict[str, float]:
    """Compare a model with its oracle; see `verify` for the columns."""
    a, b = measurement.outputs, oracle.outputs
    ratios = a.truth_ratios()
    return {
        "probability": a.probability(),
        "log_odds": a.log_odds(),
        "rank": a.rank(),
        "learning_curve_auc": learning_curve_auc(measurement.curve),
        "ks": forget_quality(ratios, oracle_ratios),
        "n_ks": len(ratios),
        **{f"js_{group}": d for group, d in divergences(a, b).items()},
        "oracle_probability": b.probability(),
        "oracle_log_odds": b.log_odds(),
        "oracle_rank": b.rank(),
        "oracle_learning_curve_auc": learning_curve_auc(oracle.curve),
    }


def findings(table: pd.DataFrame, *, margins: Margins | None = None) -> pd.DataFrame:
    """Average each method's differences over facts and seeds, and conclude a finding.

    Damage is measured in divergences between two trainings: a method's divergence from the oracle,
    mean over `OTHER_GROUPS`, divided by the mean divergence of the other seeds' oracles from it
    (with one seed, by ln 2, the largest possible).

    Args:
        table: The differences of `verify`.
        margins: Equivalence bounds, stated beforehand.

    Returns:
        One row a method, closest to the oracle first: method, family, n, probability, chance,
        log_odds, learning, damage (each a mean difference from the oracle; damage as above), with
        `_low` and `_high` of their 90 % t-intervals, ks (median p-value), finding.
    """
    margins = margins or Margins()
    table = table.dropna(subset=["log_odds"])
    groups = [f"js_{g}" for g in OTHER_GROUPS if f"js_{g}" in table]
    seed_divergences = table[table["method"] == SEED_CONTROL][groups].mean(axis=1)
    unit = float(seed_divergences.mean()) if len(seed_divergences) else float(np.log(2))
    rows = []
    for (name, kind), part in table.groupby(["method", "family"], sort=False):
        differences = {
            "log_odds": part["log_odds"] - part["oracle_log_odds"],
            "learning": part["learning_curve_auc"] - part["oracle_learning_curve_auc"],
            "damage": part[groups].mean(axis=1) / unit,
        }
        row = {"method": name, "family": kind, "n": len(part)}
        row |= {k: part[k].mean() for k in ("probability", "chance")}
        row["ks"] = part["ks"].median()
        for key, values in differences.items():
            mean, low, high = t_interval(values.to_numpy(), alpha=margins.alpha)
            row |= {key: mean, f"{key}_low": low, f"{key}_high": high}
        rows.append({**row, "finding": _finding(row, margins).value})
    return pd.DataFrame(rows).sort_values("log_odds", key=abs, ignore_index=True)


def _finding(row: Mapping[str, Any], margins: Margins) -> Finding:
    """Conclude the first difference whose interval lies outside its bounds."""
    if np.isnan(row["log_odds_low"]) or np.isnan(row["damage_low"]):
        return Finding.TOO_FEW
    still_known = row["probability"] > row["chance"]
    above = Finding.STILL_KNOWN if still_known else Finding.ABOVE_ORACLE
    bounds: dict[
        str, tuple[float, float, Any, Finding]
    ] = {  # low, high, finding below, finding above; damage has no lower bound
        "log_odds": (-margins.log_odds, margins.log_odds, Finding.OVER_FORGETTING, above),
        "damage": (-np.inf, margins.damage, None, Finding.DAMAGED),
        "learning": (
            -margins.learning,
            margins.learning,
            Finding.RELEARNED_SLOWER,
            Finding.RELEARNED_FASTER,
        ),
    }
    for key, (low, high, finding_below, finding_above) in bounds.items():
        if row[f"{key}_low"] > high:
            return finding_above
        if row[f"{key}_high"] < low:
            return finding_below
    inside = all(row[f"{k}_low"] > a and row[f"{k}_high"] < b for k, (a, b, *_) in bounds.items())
    return Finding.EQUIVALENT if inside else Finding.INCONCLUSIVE
