"""Meta-evaluation: which metric separates a known fact, or a hidden one, from an absent one?

Three states are known beforehand. *Present*: the original model and a fact that it knows. *Hidden*:
the same fact under `logit_suppression`, which changes the last layer's output and nothing below.
*Absent*: a control fact, another subject with the same answer, of which the model knows nothing. A
metric that is to certify forgetting has to separate hidden from absent.
"""

from enum import StrEnum
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.meta.all_metrics import METRICS, compute_metrics
from helpers.evaluation.metrics.depth_score import unlearning_depth
from helpers.facts import ConceptPair, facts, known_facts
from helpers.facts.known import KNOWN_PROB, knowledge_prompts
from helpers.forward.layer_cache import cache_below, use_layer_cache
from helpers.forward.scoring import answer_probability
from helpers.io.cache import cached_table
from helpers.io.code_version import code_hash
from helpers.methods import Edit
from helpers.methods.controls.logit_suppression import logit_suppression
from helpers.models import architecture_of, model_hash
from helpers.stats.intervals import Metric

N_SPARE = 4  # candidate pairs beyond those that are needed
REPETITIONS = 2000  # resamples


class KnownState(StrEnum):
    """State of a fact that is known beforehand."""

    PRESENT = "present"
    HIDDEN = "hidden"
    ABSENT = "absent"


class Discrimination(StrEnum):
    """Finding about a metric: its AUROC is above, around or below that of chance."""

    DISCRIMINATES = "sees it"
    INCONCLUSIVE = "can't tell"
    INVERTED = "is misled"


def matched_pairs(
    model: LanguageModel, relation: str, *, n: int, seed: int = 0, min_prob: float = 0.0
) -> list[tuple[ConceptPair, ConceptPair]]:
    """Match facts that the model knows with control facts of the same answer.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        n: Largest number of pairs.
        seed: Draws facts and control subjects.
        min_prob: Least mean P(target) on training prompts of a known fact.

    Returns:
        (fact, its control fact) for each pair.

    Raises:
        UserError: There are fewer than two.
    """
    table = known_facts(model, relation)
    rng = np.random.default_rng(seed)
    known = rng.permutation(sorted(table.query("known and probability >= @min_prob")["subject"]))
    unknown = rng.permutation(sorted(table[table["probability"] < KNOWN_PROB]["subject"]))
    by_subject = {f.subject: f for f in facts(relation)}
    candidates = []
    for subject, other in zip(known[: n + N_SPARE], unknown[: n + N_SPARE], strict=False):
        fact = ConceptPair.of(by_subject[str(subject)])
        control = ConceptPair(str(other), fact.target, relation, fact.aliases)
        candidates.append((fact, control))
    # A control's subject is unknown with its own target; its new target has to be unknown as well.
    prompts = [knowledge_prompts(control) for _, control in candidates]
    p = iter(answer_probability(model, [q for queries in prompts for q in queries]))
    means = [np.mean([next(p) for _ in queries]) for queries in prompts]
    pairs = [pair for pair, mean in zip(candidates, means, strict=True) if mean < KNOWN_PROB]
    if len(pairs) < 2:
        raise UserError(
            "A metric is tested on at least two facts that the model knows, each beside a subject "
            f"that it knows nothing of; for '{relation}' there are {len(pairs)}."
        )
    return pairs[:n]


def evaluate_states(
    model: LanguageModel, relation: str, *, n: int, n_depth: int, seed: int = 0
) -> pd.DataFrame:
    """Compute all metrics of facts in the three states.

    Args:
        model: The original model.
        relation: One of `RELATIONS`.
        n: Largest number of facts.
        n_depth: Number of these whose depth is measured (which patches every layer).
        seed: Draws facts, control subjects and wrong answers.

    Returns:
        One row a fact and state: fact, state (a `KnownState`), subject, and the columns of
        `METRICS`; depth is NaN where it wasn't measured. Cached fact by fact.

    Raises:
        UserError: There are fewer than two facts that the model knows, or control facts for them.
    """
    pairs, base_hash = matched_pairs(model, relation, n=n, seed=seed), model_hash(model)
    code = code_hash(__file__)
    tables = []
    for k, (fact, control) in enumerate(pairs):
        controls = [c for _, c in pairs] if k < n_depth else []
        prompts = [[str(p) for p in x.prompts("heldout")] for x in (fact, control, *controls)]
        key = {"model": base_hash, "prompts": prompts, "seed": seed, "code": code}
        table = cached_table(
            "meta-evaluation",
            key,
            partial(evaluate_fact, model, fact, control, depth_controls=controls, seed=seed),
        )
        tables.append(table.assign(fact=k))
    return pd.concat(tables, ignore_index=True)


def evaluate_fact(
    model: LanguageModel,
    fact: ConceptPair,
    control: ConceptPair,
    *,
    depth_controls: list[ConceptPair],
    seed: int = 0,
) -> pd.DataFrame:
    """Compute all metrics of one fact in the three states.

    Args:
        model: The original model.
        fact: A fact that it knows.
        control: Its control fact.
        depth_controls: Control facts for its depth score; without any, depth is NaN.
        seed: Draws wrong answers.
    """
    edit = logit_suppression(model, fact)
    present, hidden = present_and_hidden(model, fact, edit, seed=seed)
    absent = compute_metrics(model, control, seed=seed)
    depth = _depths(model, fact, edit, depth_controls)
    rows = zip(KnownState, (fact, fact, control), (present, hidden, absent), strict=True)
    return pd.DataFrame(
        [
            {"state": state.value, "subject": pair.subject, **metrics, "depth": depth[state]}
            for state, pair, metrics in rows
        ]
    )


def _depths(
    model: LanguageModel, fact: ConceptPair, edit: Edit, controls: list[ConceptPair]
) -> dict[KnownState, float]:
    """Compute 1 − depth score of one fact in the three states; NaN where it can't be measured."""
    unknown = dict.fromkeys(KnownState, float("nan"))
    if not controls:
        return unknown
    others = [ConceptPair(c.subject, fact.target, fact.relation, fact.aliases) for c in controls]
    try:
        with edit.applied(model):
            hidden = unlearning_depth(model, fact, others, max_prompts=1).score
        absent = unlearning_depth(model, fact, others, max_prompts=1, of_control=True).score
    except UserError:  # no two names have the length of the subject's
        return unknown
    present = 0.0  # nothing was changed: every δ₂ is 0
    return {
        KnownState.PRESENT: 1 - present,
        KnownState.HIDDEN: 1 - hidden,
        KnownState.ABSENT: 1 - absent,
    }


def present_and_hidden(
    model: LanguageModel, fact: ConceptPair, edit: Edit, *, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute all metrics of the model, and under an edit that hides the fact in the last layer.

    The two differ in that layer alone, so the forward passes below it are shared.
    """
    with use_layer_cache(model, cache_below(model, [architecture_of(model).n_layers - 1])):
        present = compute_metrics(model, fact, seed=seed)
        with edit.applied(model):
            return present, compute_metrics(model, fact, seed=seed)


def auc_between(
    positives: Float[np.ndarray, " n"], negatives: Float[np.ndarray, " n"], *, seed: int = 0
) -> Metric:
    """Compute the area under the ROC curve with its 95 % bootstrap interval over facts.

    Row i of both belongs to one fact and its control: they are resampled together. If the two
    groups don't overlap, the interval has no width, whatever n is.

    Args:
        positives: One number a fact; should be larger.
        negatives: As many, of the control facts.
        seed: Draws the resamples.

    Raises:
        UserError: The two have different lengths, or there are fewer than two facts.
    """
    positives, negatives = np.asarray(positives, float), np.asarray(negatives, float)
    n = len(positives)
    if n != len(negatives) or n < 2:
        raise UserError(
            f"An AUC with its interval needs at least two facts in both states; there are {n} and "
            f"{len(negatives)}."
        )
    above = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)  # (n, n)
    # A resample is a vector of counts, so its AUROC is a quadratic form in `above`.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), REPETITIONS)
    resampled = np.einsum("ri,ij,rj->r", counts, above, counts) / n**2
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Metric(float(above.mean()), float(low), float(high), n)


def metric_aucs(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Compute how well each metric separates present from absent, and hidden from absent.

    Args:
        table: From `evaluate_states`.
        seed: Seed of the intervals.

    Returns:
        One row a metric and state: metric, state (`present` or `hidden`), value (the AUROC), low,
        high, n, finding (a `Discrimination`, by whether the interval lies above or below 0.5). A
        metric measured on fewer than two facts is left out.
    """
    rows = []
    for name in METRICS:
        wide = table.pivot(index="fact", columns="state", values=name).dropna()
        for state in (KnownState.PRESENT, KnownState.HIDDEN):
            if len(wide) >= 2:
                absent = wide[KnownState.ABSENT].to_numpy()
                auc = auc_between(wide[state].to_numpy(), absent, seed=seed)
                finding = _discrimination(auc).value
                rows.append({"metric": name, "state": state.value, **vars(auc), "finding": finding})
    columns = ["metric", "state", "value", "low", "high", "n", "finding"]
    return pd.DataFrame(rows, columns=columns)


def _discrimination(auc: Metric) -> Discrimination:
    if auc.low > 0.5:
        return Discrimination.DISCRIMINATES
    return Discrimination.INVERTED if auc.high < 0.5 else Discrimination.INCONCLUSIVE


def metrics_with(aucs: pd.DataFrame, state: KnownState, finding: Discrimination) -> str:
    """List the metrics of `metric_aucs` with a finding about a state, by commas, or say `none`."""
    names = aucs[(aucs["state"] == state) & (aucs["finding"] == finding)]["metric"]
    return ", ".join(names) or "none"
