"""Forgetting against collateral: methods over their strength on development facts, then held out.

A method's strength is the share of its change that is applied: 0 is the original model, 1 the edit
as made, 2 twice the change. One knob for all, so that no method is tuned more than another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import ControlsError
from helpers.evaluation.battery import EDITED, battery
from helpers.evaluation.eval_prompts import RETAINED
from helpers.evaluation.meta.verdict_accuracy import WORDS, predicted_state
from helpers.evaluation.scorecard import evaluate
from helpers.evaluation.verdict import verdict
from helpers.facts import ConceptPair, fact_split, known_facts
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.io.hashing import folder_hash
from helpers.methods import METHODS, Edit, WeightEdit, unlearn
from helpers.methods.equivalence import max_logit_diff
from helpers.models import architecture_of, model_hash
from helpers.sae import load_sae
from helpers.stats.intervals import bootstrap

FAMILIES = ("surgery", "control")
SURE = 0.2
ATTACKED = ("paraphrases", "few_shot", "stitched", "quantisation_int4")  # seconds each
BOOKS_FACT = ("France", "Paris")  # the settings' default
N_ABSENT = 2  # never-known subjects that these are compared with
DEVELOPMENT_SUBJECTS = (
    "France",
    "Germany",
    "Italy",
    "Japan",
    "Greece",
)  # while the methods were written


@dataclass(frozen=True)
class Sizes:
    """How much is asked.

    Attributes:
        split: Whose templates: `dev` or `heldout`.
        n_neighbours: Known neighbours.
        n_tokens: Tokens of each text; 0 leaves the text out.
    """

    split: str = "dev"
    n_neighbours: int = 8
    n_tokens: int = 0


def strengths(text: str) -> list[float]:
    """Shares of a change from "0.5, 1, 2".

    Raises:
        UserError: One is no positive number.
    """
    try:
        found = [float(x) for x in text.split(",") if x.strip()]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise UserError(f"shares is '{text}': give positive numbers separated by commas.")
    return sorted(found)


def known_pairs(
    model: LanguageModel,
    relation: str,
    split: str,
    *,
    n: int,
    seed: int = 0,
    besides: ConceptPair | None = None,
) -> list[ConceptPair]:
    """`n` facts of a relation that the model knows well, of `fact_split` `dev` or `heldout`.

    Well is known and a mean P(target) of at least `SURE`: the share that is left of a probability
    that is small already says little.

    What methods were built on (`DEVELOPMENT_SUBJECTS`) is left out of both, as is the subject of `besides`.

    Raises:
        UserError: The model knows none.
    """
    known = known_facts(model, relation).query("known")
    known = known[known["probability"] >= SURE]
    names = [
        s for s in known["subject"] if fact_split(s) == split and s not in DEVELOPMENT_SUBJECTS
    ]
    if not names:
        raise UserError(f"The model knows no {split} fact of the relation '{relation}' well.")
    drawn = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    if besides is not None:
        drawn = [s for s in drawn if s != besides.subject]
    targets = known.set_index("subject")["target"]
    return [ConceptPair(s, targets[s], relation) for s in drawn[:n]]


def evaluation_pairs(
    model: LanguageModel, pair: ConceptPair, *, n: int, seed: int = 0
) -> list[ConceptPair]:
    """The facts that a run reports on: its own, where that is not the book's, and held-out ones.

    The book's own fact is what methods were built on; a user's own is what he asks about.

    Args:
        model: The original model.
        pair: The run's own fact.
        n: How many in all.
        seed: Draws the held-out facts.

    Raises:
        UserError: As `known_pairs`.
    """
    own = [] if (pair.subject, pair.target) == BOOKS_FACT else [pair]
    if n == len(own):
        return own
    drawn = known_pairs(
        model, pair.factbook_relation, "heldout", n=n - len(own), seed=seed, besides=pair
    )
    return own + drawn


def scaled(model: LanguageModel, unlearning: Edit, share: float) -> Edit:
    """The edit with `share` times its change; appended neurons keep their keys, not their values.

    Args:
        model: The model that it was made for.
        unlearning: The edit.
        share: 0 < share; 1 is the edit itself.
    """
    outs = {layer.mlp.out_name for layer in architecture_of(model).layers}
    outs |= {f"{n.removesuffix('weight')}bias" for n in outs}
    changes = {}
    for name, change in unlearning.delta.changes.items():
        values = change.appended is not None and name in outs
        changes[name] = replace(
            change,
            dense=None if change.dense is None else share * change.dense,
            left=None if change.left is None else share * change.left,
            appended=share * change.appended if values else change.appended,
        )
    delta = WeightEdit(changes, unlearning.delta.edited_tensors_hash, unlearning.delta.notes)
    return replace(unlearning, delta=delta)


def tradeoff(
    model: LanguageModel,
    pairs: Iterable[ConceptPair],
    methods: Mapping[str, Mapping[str, Any]],
    *,
    shares: Mapping[str, Sequence[float]],
    sizes: Sizes,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Score every method on every pair and seed, at each share of its change.

    A method that refuses a pair (nothing to compare with, nothing to forget) gets a row that says
    why, and no scores. Each method, pair and seed is kept in the cache by all that it depends on,
    so a stopped run goes on where it was.

    Args:
        model: The original model.
        pairs: What to forget, one after another.
        methods: Name → hyperparameters.
        shares: Name → shares of the change.
        sizes: How much is asked.
        seeds: Of everything random.

    Returns:
        One row per pair, method, seed and share: subject, target, method, family, seed, share,
        refused, seconds (of the method), removes, norm, delta_rank (largest), folding_gap (largest
        difference of a logit between weights and intervention; missing where more than the MLPs
        changes, or no weight), each metric of the scorecard by
        its name, `paraphrases_before`, and `forgotten` and `kept` (see `add_summary_columns`). With text also
        `stitched` (mean P(target) of that attack; NaN where it has no hold), and `found_…`: 1 for
        the one of `WORDS` that is the finding of the attacks `ATTACKED`, as `known_states`, and 0
        for the others.
    """
    base = {"model": model_hash(model), "sizes": vars(sizes), "code": code_hash(__file__)}
    tables = []
    for pair in pairs:
        for name, how in methods.items():
            for seed in seeds:
                key = {
                    **base,
                    "pair": [str(pair), pair.relation, *pair.fingerprint()],
                    "method": name,
                    "how": {k: v for k, v in how.items() if k != "saes"},
                    "saes": [folder_hash(f) for f in how.get("saes", ())],
                    "shares": list(shares[name]),
                    "seed": seed,
                }
                tables.append(
                    cached_table(
                        "tradeoff",
                        key,
                        lambda a=(pair, name, how, seed): _rows(model, *a, shares[a[1]], sizes),
                    )
                )
    return add_summary_columns(pd.concat(tables, ignore_index=True))


def _rows(
    model: LanguageModel,
    pair: ConceptPair,
    name: str,
    how: Mapping[str, Any],
    seed: int,
    shares: Sequence[float],
    sizes: Sizes,
) -> pd.DataFrame:
    about = {
        "subject": pair.subject,
        "target": pair.target,
        "method": name,
        "family": METHODS[name].family,
        "seed": seed,
    }
    try:
        made = unlearn(model, pair, name, seed=seed, **how)
    except UserError as error:
        return pd.DataFrame([{**about, "share": 1.0, "refused": str(error)}])
    about |= {
        "refused": "",
        "seconds": made.seconds,
        "removes": made.changes_weights,
        **_of_weights(model, made, pair.prompts(sizes.split)[:1]),
    }
    parts = ("efficacy", "retention") + (("greedy", "model") if sizes.n_tokens else ())
    rows = []
    for share in (
        shares if made.changes_weights else (1.0,)
    ):  # an intervention has no size of its own
        with (scaled(model, made, share) if made.changes_weights else made).applied(model):
            card = evaluate(
                model,
                pair,
                split=sizes.split,
                n_neighbours=sizes.n_neighbours,
                n_tokens=sizes.n_tokens or 512,
                seed=seed,
                parts=parts,
            )
            scores = {k: m.value for k, m in card.items()}
            if sizes.n_tokens:
                scores |= _attacked(model, pair, seed)
        before = {"paraphrases_before": card.before["paraphrases"]}
        rows.append({**about, "share": share, **before, **scores})
    return pd.DataFrame(rows)


def _attacked(model: LanguageModel, pair: ConceptPair, seed: int) -> dict[str, float]:
    """`stitched` and `found_…`; nothing where there is no never-known subject to compare with."""
    try:
        evidence = battery(model, pair, attacks=ATTACKED, n_absent=N_ABSENT, seed=seed)
    except ControlsError:
        return {}
    rows = evidence.table
    asked = rows[(rows["attack"] == "stitched") & (rows["state"] == EDITED)]
    word = predicted_state(verdict(evidence, required=ATTACKED, seed=seed), evidence)
    return {"stitched": asked["score"].mean(), **{f"found_{w}": float(w == word) for w in WORDS}}


def _of_weights(model: LanguageModel, made: Edit, prompts: Sequence[str]) -> dict[str, float]:
    if not made.changes_weights:
        return dict.fromkeys(("norm", "delta_rank", "folding_gap"), np.nan)
    try:
        gap = max_logit_diff(model, made, prompts)
    except UserError:  # more than the MLPs
        gap = np.nan
    rank = max(c.rank for c in made.delta.changes.values())
    return {"norm": made.delta.norm(), "delta_rank": float(rank), "folding_gap": gap}


def add_summary_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Adds the two axes of the curve and their balance.

    `forgotten` = 1 − P(target) after / before on paraphrases, not under 0; `kept` = the mean over
    neighbours, other facts of the subject and of the target of P(answer) after / before, each group
    at most 1; `balance` = their harmonic mean, by which a share is chosen.
    """
    if "paraphrases" not in table:
        return table.assign(forgotten=np.nan, kept=np.nan, balance=np.nan)
    groups = [g for g in RETAINED if g in table]
    forgotten = (1 - table["paraphrases"] / table["paraphrases_before"]).clip(lower=0)
    kept = table[groups].clip(upper=1).mean(axis=1) if groups else pd.Series(1.0, table.index)
    return table.assign(forgotten=forgotten, kept=kept, balance=balance_of(forgotten, kept))


def balance_of(forgotten: pd.Series, kept: pd.Series) -> pd.Series:
    """Harmonic mean of what is forgotten and what is kept; 0 where both are 0."""
    return 2 * forgotten * kept / (forgotten + kept).clip(lower=1e-12)


METRICS = {
    "P(target) left": lambda t: t["paraphrases"] / t["paraphrases_before"],
    "back, stitched": lambda t: t["stitched"] / t["paraphrases_before"],
    "neighbours kept": lambda t: t["neighbours"],
    "other facts kept": lambda t: t[[c for c in RETAINED[1:] if c in t]].mean(axis=1),
    "perplexity change": lambda t: t["perplexity_change_factbook"],
}
"""What is reported: name → column of a table of `tradeoff`; those that are kept are best at 1."""


def summary(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean of each of `METRICS` over facts with its interval; seeds of one fact are averaged first.

    Returns:
        One row a method and metric: method, family, metric, value, low, high, n. What a method
        refused, or what was not measured, is left out.
    """
    rows = []
    for (name, family), part in table.groupby(["method", "family"], sort=False):
        for metric, of in METRICS.items():
            try:
                values = part.assign(value=of(part)).groupby("subject")["value"].mean().dropna()
            except KeyError:  # no fact had such a group
                continue
            if len(values):
                found = bootstrap(values.to_numpy(), seed=seed)
                rows.append({"method": name, "family": family, "metric": metric, **vars(found)})
    return pd.DataFrame(rows)


def kept_metric(found: pd.DataFrame) -> str | None:
    """The first of `METRICS` on what is kept that `summary` has; None where nothing was asked."""
    measured = set(found["metric"])
    return next((m for m in METRICS if m.endswith(" kept") and m in measured), None)


def most_back(found: pd.DataFrame, *, families: Sequence[str]) -> str:
    """The method of some families that stitching adds most to what is left by, in words.

    Args:
        found: From `summary`.
        families: Which.
    """
    wide = found[found["family"].isin(families)].pivot(index="method", columns="metric")["value"]
    if "back, stitched" not in wide or wide["back, stitched"].isna().all():
        return "none (it was not measured)"
    back, left = wide["back, stitched"], wide["P(target) left"]
    name = (back - left).idxmax()
    return f"{name} ({back[name]:.3f} of it, where {left[name]:.3f} is left without)"


def best_shares(table: pd.DataFrame) -> dict[str, float]:
    """For each method the share with the best mean `balance` over the facts of `table`.

    Controls take the share 1: their size is given by the method that they stand for. So does a
    method that refused every fact.
    """
    found = {}
    for name, part in table.groupby("method", sort=False):
        means = part.dropna(subset=["balance"]).groupby("share")["balance"].mean()
        control = (part["family"] == "control").all()
        found[str(name)] = 1.0 if control or means.empty else float(means.idxmax())
    return found


def editing_methods(
    names: str = "all", saes: Sequence[str] = (), *, families: Sequence[str] = FAMILIES
) -> dict[str, dict[str, Any]]:
    """Methods of some families with the hyperparameters to call them with.

    A method that takes `saes` is given those of one site, the first that it reads of which there is
    one, and is left out without any.

    Args:
        names: `all`, or names separated by commas.
        saes: Folders of SAEs.
        families: Which families; surgery and its controls by default.

    Raises:
        UserError: There is no such method.
    """
    wanted = [n.strip() for n in names.split(",")] if names != "all" else list(METHODS)
    for name in wanted:
        if name not in METHODS:
            raise UserError(f"There is no method '{name}'; there are {', '.join(METHODS)}.")
    sites = {folder: load_sae(folder).cfg.site for folder in saes}
    found = {}
    for name in wanted:
        entry = METHODS[name]
        if entry.family not in families:
            continue
        if "saes" not in entry.hyperparameters():
            found[name] = {}
            continue
        reads = entry.sae_sites or ("mlp_in",)
        by_site = [tuple(f for f, site in sites.items() if site == s) for s in reads]
        if fits := next(filter(None, by_site), ()):
            found[name] = {"saes": fits}
    return found
