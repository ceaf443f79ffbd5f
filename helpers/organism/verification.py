"""Every method against the oracle: one table of differences, and what they amount to.

Margins are stated here, before anything is measured. A method is *as if never known* when all of
its differences from the oracles are shown to lie within them (two one-sided tests, Schuirmann
1987); otherwise the first difference that is shown to lie outside is its finding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel
from scipy import stats

from helpers.errors import UserError
from helpers.evaluation.metrics.truth_ratio import forget_quality
from helpers.evaluation.tradeoff import FAMILIES, editing_methods
from helpers.methods import METHODS, unlearn
from helpers.organism.exact import OTHERS, EvalOutputs, EvalSet, distances, eval_set, read
from helpers.organism.family import Family
from helpers.organism.relearning import LR, learned, learning_curve

ORIGINAL, TWIN = "original", "oracle of another seed"


@dataclass(frozen=True)
class Margins:
    """Largest difference from the oracle that counts as none.

    Attributes:
        log_odds: Of the target, in nats: odds within a factor of ten.
        learning: Of the mean of P(target) over the learning curve.
        damage: Of what is said elsewhere: so many times the divergence between two originals.
        alpha: Level of each test.
    """

    log_odds: float = float(np.log(10))
    learning: float = 0.1
    damage: float = 1.0
    alpha: float = 0.05


def verify(
    family: Family, methods: Mapping[int, Mapping[str, Mapping[str, Any]]], *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make each edit on each original of a family and compare it with its own oracle.

    Args:
        family: Originals and oracles.
        methods: For each of the family's seeds name → hyperparameters: SAEs are a model's own.
        seed: Of the methods and of what is asked.

    Returns:
        Differences: one row a fact, seed and method (and for `ORIGINAL`, and for `TWIN`, the
        oracles of the other seeds): subject, target, training (the seed), method, family, refused,
        chance (of a guess), probability, log_odds, rank, ks (p-value of truth ratios
        against all oracles), n_ks (truth ratios compared), js_<group> (divergence from the oracle),
        learned, and `oracle_...` for the oracle's own probability, log_odds, rank and learned.
        Curves: subject, training, method, step, probability; the oracle's as method `oracle`.
    """
    rows, curves = [], []
    for pair in family.pairs:
        asked = eval_set(family.recipe.world(), pair, seed=seed)
        oracles = {s: _seen(family.oracle(pair, s), asked) for s in family.seeds}
        ratios = np.concatenate([o.reading.truth_ratios() for o in oracles.values()])
        for s in family.seeds:
            model, mine = family.original(s), oracles[s]
            found = [(ORIGINAL, "reference", _seen(model, asked), {})]
            found += [(TWIN, "reference", other, {}) for t, other in oracles.items() if t != s]
            found += list(_edits(model, asked, methods[s], seed))
            curves.append(mine.curve.assign(subject=pair.subject, training=s, method="oracle"))
            for name, kind, seen, about in found:
                row = {
                    "subject": pair.subject,
                    "target": pair.target,
                    "training": s,
                    "method": name,
                    "family": kind,
                    "chance": asked.chance,
                    **about,
                }
                if seen is not None:
                    row |= _compared(seen, mine, ratios)
                    if name != TWIN:
                        here = {"subject": pair.subject, "training": s, "method": name}
                        curves.append(seen.curve.assign(**here))
                rows.append(row)
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True)


def verifiable(names: str = "all", saes: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Methods that change weights, with the hyperparameters to call them with.

    Methods of training take `LR`, a tenth of the organism's own rate: their defaults are tuned for
    the pretrained model, and move this one by next to nothing.

    Args:
        names: `all`, or names separated by commas.
        saes: Folders of SAEs of the model, for the methods of surgery that need them.

    Raises:
        UserError: There is no such method.
    """
    found = editing_methods(names, saes, families=(*FAMILIES, "training"))
    trained = {n: how for n, how in found.items() if METHODS[n].family == "training"}
    for name, how in trained.items():
        if "saes" in how:
            del found[name]
        elif "lr" in METHODS[name].hyperparameters():
            found[name] = {"lr": LR}
    return found


@dataclass(frozen=True)
class Seen:
    """What a model says, and how fast it learns the fact."""

    reading: EvalOutputs
    curve: pd.DataFrame


def _seen(model: LanguageModel, asked: EvalSet) -> Seen:
    return Seen(read(model, asked), learning_curve(model, asked.pair))


def _edits(
    model: LanguageModel, asked: EvalSet, methods: Mapping[str, Mapping[str, Any]], seed: int
) -> Iterator[tuple[str, str, Seen | None, dict[str, Any]]]:
    for name, how in methods.items():
        kind = METHODS[name].family
        try:
            made = unlearn(model, asked.pair, name, seed=seed, **how)
        except UserError as error:
            yield name, kind, None, {"refused": str(error)}
            continue
        with made.applied(model):
            seen = _seen(model, asked)
        yield name, kind, seen, {"refused": ""}


def _compared(seen: Seen, oracle: Seen, ratios: Float[np.ndarray, " n"]) -> dict[str, float]:
    a, b = seen.reading, oracle.reading
    mine = a.truth_ratios()
    return {
        "probability": a.probability(),
        "log_odds": a.log_odds(),
        "rank": a.rank(),
        "learned": learned(seen.curve),
        "ks": forget_quality(mine, ratios),
        "n_ks": len(mine),
        **{f"js_{g}": d for g, d in distances(a, b).items()},
        "oracle_probability": b.probability(),
        "oracle_log_odds": b.log_odds(),
        "oracle_rank": b.rank(),
        "oracle_learned": learned(oracle.curve),
    }


def findings(table: pd.DataFrame, *, margins: Margins | None = None) -> pd.DataFrame:
    """What each method's differences amount to.

    The units are facts and seeds. Damage is measured in divergences between two trainings: the mean
    over the groups of `OTHERS` of a method's divergence from the oracle, divided by the mean
    divergence of the other seeds' oracles from it (with one seed, by ln 2, the largest there is).

    Args:
        table: The differences of `verify`.
        margins: Stated beforehand.

    Returns:
        One row a method, closest to the oracle first: method, family, n, probability, chance,
        log_odds, learning, damage (each a mean difference from the oracle; damage as above), with
        `_low` and `_high` of their 90 % t-intervals, ks (median p-value), finding.
    """
    margins = margins or Margins()
    table = table.dropna(subset=["log_odds"])
    groups = [f"js_{g}" for g in OTHERS if f"js_{g}" in table]
    noise = table[table["method"] == TWIN][groups].mean(axis=1)
    unit = float(noise.mean()) if len(noise) else float(np.log(2))
    rows = []
    for (name, kind), part in table.groupby(["method", "family"], sort=False):
        differences = {
            "log_odds": part["log_odds"] - part["oracle_log_odds"],
            "learning": part["learned"] - part["oracle_learned"],
            "damage": part[groups].mean(axis=1) / unit,
        }
        row = {"method": name, "family": kind, "n": len(part)}
        row |= {k: part[k].mean() for k in ("probability", "chance")}
        row["ks"] = part["ks"].median()
        for key, values in differences.items():
            mean, low, high = t_interval(values.to_numpy(), alpha=margins.alpha)
            row |= {key: mean, f"{key}_low": low, f"{key}_high": high}
        rows.append({**row, "finding": _finding(row, margins)})
    found = pd.DataFrame(rows)
    return found.sort_values("log_odds", key=abs, ignore_index=True)


def _finding(row: Mapping[str, Any], margins: Margins) -> str:
    if np.isnan(row["log_odds_low"]) or np.isnan(row["damage_low"]):
        return "too few to tell"
    more = "still known" if row["probability"] > row["chance"] else "more than never known"
    limits = {
        "log_odds": (-margins.log_odds, margins.log_odds, "scar", more),
        "damage": (-np.inf, margins.damage, "", "damaged"),
        "learning": (-margins.learning, margins.learning, "learned slower", "comes back faster"),
    }
    for key, (low, high, under, over) in limits.items():
        if row[f"{key}_low"] > high:
            return over
        if row[f"{key}_high"] < low:
            return under
    inside = all(row[f"{k}_low"] > a and row[f"{k}_high"] < b for k, (a, b, *_) in limits.items())
    return "as if never known" if inside else "open"


def t_interval(values: Float[np.ndarray, " n"], *, alpha: float) -> tuple[float, float, float]:
    """Mean with its 1 − 2 alpha interval by Student's t; NaN where there are fewer than three.

    The interval lies within margins exactly when both one-sided tests at level alpha say so.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, n = float(values.mean()), len(values)
    if n < 3:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(1 - alpha, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half
