"""Metrics of the metrics: which number tells a fact that is there, or hidden, from one that isn't?

Three states are known beforehand. *Present*: the original model and a fact that it knows. *Hidden*:
the same fact under `logit_suppression`, which changes the last layer's word and nothing below.
*Absent*: another subject, of which the model knows nothing, with the same answer. A metric that is
to certify that something is gone has to tell hidden from absent.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import UNKNOWN
from helpers.evaluation.meta.all_metrics import METRICS, compute_metrics
from helpers.evaluation.metrics.depth_score import unlearning_depth
from helpers.facts import ConceptPair, facts, known_facts
from helpers.facts.known import asked
from helpers.forward.layer_cache import cache_below, use_layer_cache
from helpers.forward.scoring import answer_probability
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.methods import Edit
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.models import architecture_of, model_hash
from helpers.stats.intervals import REPETITIONS, Metric

STATES = PRESENT, HIDDEN, ABSENT = ("present", "hidden", "absent")
SPARE = 4  # pairs looked at beyond those asked for
SEES, BLIND, MISLED = "sees it", "can't tell", "is misled"


def cases(
    model: LanguageModel, relation: str, *, n: int, seed: int = 0, least: float = 0.0
) -> list[tuple[ConceptPair, ConceptPair]]:
    """Facts that the model knows, each with a subject of its own that it knows nothing of.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        n: How many; fewer where there are not so many.
        seed: Draws facts and subjects.
        least: Mean P(target) on training wordings that a fact needs to count as known.

    Raises:
        UserError: There are not even two.
    """
    table = known_facts(model, relation)
    rng = np.random.default_rng(seed)
    known = rng.permutation(sorted(table.query("known and probability >= @least")["subject"]))
    unknown = rng.permutation(sorted(table[table["probability"] < UNKNOWN]["subject"]))
    by_subject = {f.subject: f for f in facts(relation)}
    found = []
    for subject, other in zip(known[: n + SPARE], unknown[: n + SPARE], strict=False):
        fact = ConceptPair.of(by_subject[str(subject)])
        found.append((fact, ConceptPair(str(other), fact.target, relation, fact.aliases)))
    prompts = [asked(stranger) for _, stranger in found]
    p = iter(answer_probability(model, [q for own in prompts for q in own]))
    means = [np.mean([next(p) for _ in own]) for own in prompts]
    kept = [case for case, mean in zip(found, means, strict=True) if mean < UNKNOWN]
    if len(kept) < 2:
        raise UserError(
            "A metric is tested on at least two facts that the model knows, each beside a subject "
            f"that it knows nothing of; for '{relation}' there are {len(kept)}."
        )
    return kept[:n]


def calibrate(
    model: LanguageModel, relation: str, *, n: int, n_depth: int, seed: int = 0
) -> pd.DataFrame:
    """All readings of `n` facts in the three states.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        n: How many facts at most.
        n_depth: For how many of them depth is measured (it patches every layer).
        seed: Draws facts, strangers and wrong answers.

    Returns:
        One row a fact and state: fact, state, subject, and the columns of `METRICS`; depth is
        NaN where it wasn't measured. Kept in the cache, fact by fact.

    Raises:
        UserError: As `cases`.
    """
    chosen, base = cases(model, relation, n=n, seed=seed), model_hash(model)
    code = code_hash(__file__)
    tables = []
    for k, (fact, stranger) in enumerate(chosen):
        deep = [s for _, s in chosen] if k < n_depth else []
        texts = [[str(p) for p in x.prompts("heldout")] for x in (fact, stranger, *deep)]
        key = {"model": base, "asked": texts, "seed": seed, "code": code}
        table = cached_table(
            "calibration",
            key,
            lambda fact=fact, stranger=stranger, deep=deep: one(
                model, fact, stranger, deep=deep, seed=seed
            ),
        )
        tables.append(table.assign(fact=k))
    return pd.concat(tables, ignore_index=True)


def one(
    model: LanguageModel,
    fact: ConceptPair,
    stranger: ConceptPair,
    *,
    deep: list[ConceptPair],
    seed: int = 0,
) -> pd.DataFrame:
    """Readings of one fact in the three states; `deep`: strangers for its depth, or none."""
    edit = logit_suppression(model, fact)
    depth = dict.fromkeys(STATES, float("nan"))
    present, hidden = shown_and_hidden(model, fact, edit, seed=seed)
    absent = compute_metrics(model, stranger, seed=seed)
    if deep:
        others = [ConceptPair(s.subject, fact.target, fact.relation, fact.aliases) for s in deep]
        try:
            with edit.applied(model):
                depth[HIDDEN] = 1 - unlearning_depth(model, fact, others, most=1).score
            depth[ABSENT] = 1 - unlearning_depth(model, fact, others, most=1, absent=True).score
            depth[PRESENT] = 1.0  # nothing was changed: every δ₂ is 0
        except UserError:  # no two names of the subject's length
            depth = dict.fromkeys(STATES, float("nan"))
    rows = zip(STATES, (fact, fact, stranger), (present, hidden, absent), strict=True)
    return pd.DataFrame(
        [{"state": s, "subject": x.subject, **found, "depth": depth[s]} for s, x, found in rows]
    )


def shown_and_hidden(
    model: LanguageModel, fact: ConceptPair, edit: Edit, *, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Readings of the model as it is and under an edit that hides the fact in the last layer.

    The two differ in that layer alone, so the second is asked from there on.
    """
    with use_layer_cache(model, cache_below(model, [architecture_of(model).n_layers - 1])):
        present = compute_metrics(model, fact, seed=seed)
        with edit.applied(model):
            return present, compute_metrics(model, fact, seed=seed)


def auc_between(
    left: Float[np.ndarray, " n"], right: Float[np.ndarray, " n"], *, seed: int = 0
) -> Metric:
    """Area under the ROC curve with the 95 % interval over facts.

    Row i of both is of one fact and its stranger: they are drawn together. Where the two groups
    don't overlap the interval has no width, whatever n is.

    Args:
        left: Should be larger.
        right: As many.
        seed: Draws the resamples.

    Raises:
        UserError: The two have different lengths, or there are fewer than two facts.
    """
    left, right = np.asarray(left, float), np.asarray(right, float)
    n = len(left)
    if n != len(right) or n < 2:
        raise UserError(
            f"An AUC with its interval needs at least two facts in both states; there are {n} and "
            f"{len(right)}."
        )
    above = (left[:, None] > right) + 0.5 * (left[:, None] == right)  # (n, n)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), REPETITIONS)
    found = np.einsum("ri,ij,rj->r", drawn, above, drawn) / n**2
    low, high = np.percentile(found, [2.5, 97.5])
    return Metric(float(above.mean()), float(low), float(high), n)


def metric_aucs(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """How well each reading tells present from absent, and hidden from absent.

    Args:
        table: From `calibrate`.
        seed: Of the intervals.

    Returns:
        One row a metric and state: metric, state (`present` or `hidden`), value, low, high, n,
        finding (`sees it` where the interval lies above 0.5, `is misled` where it lies below,
        `can't tell` otherwise). A metric measured on fewer than two facts is left out.
    """
    rows = []
    for name in METRICS:
        wide = table.pivot(index="fact", columns="state", values=name).dropna()
        for state in (PRESENT, HIDDEN):
            if len(wide) >= 2:
                m = auc_between(wide[state].to_numpy(), wide[ABSENT].to_numpy(), seed=seed)
                finding = SEES if m.low > 0.5 else MISLED if m.high < 0.5 else BLIND
                rows.append({"metric": name, "state": state, **vars(m), "finding": finding})
    columns = ["metric", "state", "value", "low", "high", "n", "finding"]
    return pd.DataFrame(rows, columns=columns)


def listed(apart: pd.DataFrame, state: str, finding: str) -> str:
    """The metrics of `metric_aucs` with one finding about a state, by commas, or `none`."""
    found = apart[(apart["state"] == state) & (apart["finding"] == finding)]["metric"]
    return ", ".join(found) or "none"
