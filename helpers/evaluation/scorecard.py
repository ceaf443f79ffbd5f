"""The scorecard of an edit: forgetting, retention, and the effect on ordinary text."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.evaluation.eval_prompts import RETAINED, names_target
from helpers.evaluation.metrics.fluency import ngram_entropy, repetition
from helpers.evaluation.metrics.perplexity import losses_and_kl, perplexity, perplexity_change
from helpers.evaluation.model_outputs import ModelOutputs, OutputsConfig, outputs_of_base
from helpers.facts import ConceptPair
from helpers.facts.known import KNOWN_PROB
from helpers.facts.relations import check_split
from helpers.forward.layer_cache import lowest_layer
from helpers.io.choices import check_choice
from helpers.methods import active_edits, base_model
from helpers.methods.hook_intervention import HookIntervention
from helpers.models import model_hash
from helpers.stats.intervals import Metric, mean_interval

PARTS = ("efficacy", "greedy", "retention", "model", "generation")
NAN = float("nan")


class Scorecard(Mapping[str, Metric]):
    """Metrics by name, each with its interval, n, and its value before the edit.

    Attributes:
        before: Name → value of the original model, where it has one.
        about: The pair's subject, target and relation, the split and the seed.
        units: Name → one value an independent unit, for metrics of what must stay: facts for
            retention, sequences for changes of perplexity (those of their losses, in nats).
    """

    def __init__(
        self,
        metrics: dict[str, Metric],
        before: dict[str, float],
        about: dict[str, Any],
        units: dict[str, Float[np.ndarray, " n"]],
    ):
        """Store the values; `evaluate` makes scorecards."""
        self._metrics, self.before, self.about, self.units = metrics, before, about, units

    def __getitem__(self, name: str) -> Metric:
        """Return the metric of that name."""
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the metrics."""
        return iter(self._metrics)

    def __len__(self) -> int:
        """Count the metrics."""
        return len(self._metrics)

    def table(self) -> pd.DataFrame:
        """Tabulate the metrics, one row each: metric, before, value, low, high, n."""
        return pd.DataFrame(
            [
                {"metric": k, "before": self.before.get(k, np.nan), **vars(m)}
                for k, m in self.items()
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for an artifact; None where there is no number."""
        table = self.table().astype(object)
        return {**self.about, "metrics": table.where(table.notna(), None).to_dict("records")}

    def __str__(self) -> str:
        """Format the table as text."""
        return self.table().to_string(index=False, float_format="{:.4f}".format, na_rep="")

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, float_format="{:.4f}".format, na_rep="")


def evaluate(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    split: str = "heldout",
    n_neighbours: int = 24,
    n_tokens: int = 4096,
    seed: int = 0,
    parts: Sequence[str] = PARTS,
) -> Scorecard:
    """Score the model with its edits, and without them for comparison.

    Efficacy: `own`, `paraphrases` and `reverse` are mean P(target) (whole answer, aliases summed),
    `worst_paraphrase` the largest, `rank` the median rank of the target's first token (1 is the
    likeliest). Greedy: `greedy`, the fraction of paraphrases whose greedy continuation names it.

    Retention: `neighbours`, `same_subject`, `same_target`, `must_stay` are means over the facts
    that were known (`KNOWN_PROB`) before, of min(1, P(answer) after / before): one that rises does
    not hide another that falls. `worst_…` is the smallest ratio. `change_…` is the mean of
    |after / before − 1|, 0 if nothing changed: what rises is damage too.

    Model: `perplexity_…` on held-out Factbook passages, on a second source and on dialogues,
    `perplexity_change_…` relative to before, `kl_…` = KL(before ‖ after) in nats a token.

    Generation: `entropy` (bits) and `repetition` of n-grams in greedy continuations of the
    beginnings of held-out Factbook passages (`helpers.evaluation.metrics.fluency`).

    Intervals are 95 % intervals by Student's t, given for at least `MIN_INTERVAL_UNITS` units: over
    prompts for efficacy, over facts for retention, over sequences or texts for text. A group
    without known facts is left out.

    Args:
        model: The model, with `Edit`s applied or without.
        pair: The fact that was to be forgotten.
        split: The split whose templates are used: choose settings on `dev`, report `heldout`.
        n_neighbours: Number of neighbours, of those known in the split's prompts.
        n_tokens: Tokens of each text.
        seed: Draws neighbours and passages.
        parts: The names of `PARTS` to compute.

    Raises:
        UserError: There is no such part or split.
    """
    for part in parts:
        check_choice("part", part, PARTS)
    check_split(split)
    config = OutputsConfig(pair, split, n_neighbours, n_tokens, seed, tuple(parts))
    first_edited_layer = _first_edited_layer(model)
    with base_model(model):
        base = outputs_of_base(model, config, first_edited_layer)
    now = base if model_hash(model) == base.model_hash else base.rerun(model)
    metrics: dict[str, Metric] = {}
    before: dict[str, float] = {}
    units: dict[str, Float[np.ndarray, " n"]] = {}
    for part, measure in (
        ("efficacy", _efficacy),
        ("greedy", _greedy),
        ("generation", _generation),
    ):
        if part in parts:
            metrics |= measure(now)
            before |= {name: metric.value for name, metric in measure(base).items()}
    if "retention" in parts:
        retained, units_of_retained = _retention(base, now)
        metrics |= retained
        units |= units_of_retained
    if "model" in parts:
        text_metrics, text_before, units_of_text = _on_text(model, base, now)
        metrics |= text_metrics
        before |= text_before
        units |= units_of_text
    about = {
        "subject": pair.subject,
        "target": pair.target,
        "relation": pair.relation,
        "split": split,
        "seed": seed,
    }
    return Scorecard(metrics, before, about, units)


def _first_edited_layer(model: LanguageModel) -> int:
    """Return the lowest layer that the model's edits change; 0 where they may change anything."""
    edits = [edit.delta for edit in active_edits(model)]
    if any(isinstance(delta, HookIntervention) for delta in edits):
        return 0
    return lowest_layer(model, [name for delta in edits for name in delta.changes])


def _efficacy(outputs: ModelOutputs) -> dict[str, Metric]:
    metrics = {}
    for group in ("own", "paraphrases", "reverse"):
        probability = outputs.probability[outputs.mask(group)]
        if len(probability):
            metrics[group] = mean_interval(probability)
    mask = outputs.mask("paraphrases")
    probability, ranks = outputs.probability[mask], outputs.rank[mask] + 1
    metrics["worst_paraphrase"] = Metric(float(probability.max()), NAN, NAN, len(probability))
    metrics["rank"] = Metric(float(np.median(ranks)), NAN, NAN, len(ranks))
    return metrics


def _greedy(outputs: ModelOutputs) -> dict[str, Metric]:
    pair = outputs.config.pair
    named = np.array([names_target(pair, text) for text in outputs.generations], float)
    return {"greedy": mean_interval(named)}


def _generation(outputs: ModelOutputs) -> dict[str, Metric]:
    measures = {"entropy": ngram_entropy, "repetition": repetition}
    return {
        name: mean_interval(np.array([measure(words) for words in outputs.texts]))
        for name, measure in measures.items()
    }


def _retention(
    base: ModelOutputs, now: ModelOutputs
) -> tuple[dict[str, Metric], dict[str, Float[np.ndarray, " n"]]]:
    """Compute metrics on facts that must stay, and their values fact by fact."""
    metrics: dict[str, Metric] = {}
    units: dict[str, Float[np.ndarray, " n"]] = {}
    for group in RETAINED:
        if not base.mask(group).any():
            continue
        before, after = base.by_fact(group), now.by_fact(group)
        known = before >= KNOWN_PROB
        if known.any():
            ratio = after[known] / before[known]
            # Capped at 1, since a fact that became likelier makes up for no other that was lost.
            units |= {group: ratio.clip(max=1), f"change_{group}": np.abs(ratio - 1)}
            metrics[group] = mean_interval(units[group])
            metrics[f"worst_{group}"] = Metric(float(ratio.min()), NAN, NAN, int(known.sum()))
            metrics[f"change_{group}"] = mean_interval(units[f"change_{group}"])
    return metrics, units


def _on_text(
    model: LanguageModel, base: ModelOutputs, now: ModelOutputs
) -> tuple[dict[str, Metric], dict[str, float], dict[str, Float[np.ndarray, " n"]]]:
    """Compute metrics on ordinary text, their values before the edit, and changes by sequence."""
    metrics: dict[str, Metric] = {}
    before: dict[str, float] = {}
    units: dict[str, Float[np.ndarray, " n"]] = {}
    for source, tokens in base.corpora.items():
        old, new, kl = losses_and_kl(
            model, tokens, base.states[source], now.states[source], partial(base_model, model)
        )
        metrics[f"perplexity_{source}"] = perplexity(new)
        before[f"perplexity_{source}"] = perplexity(old).value
        metrics[f"perplexity_change_{source}"] = perplexity_change(old, new)
        units[f"perplexity_change_{source}"] = new - old
        metrics[f"kl_{source}"] = mean_interval(kl)
    return metrics, before, units
