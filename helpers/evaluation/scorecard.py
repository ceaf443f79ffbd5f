"""The scorecard of one unlearning: what is gone, what stayed, what it cost."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.eval_prompts import (
    KNOWN,
    RETAINED,
    EvalPrompt,
    efficacy_prompts,
    names_target,
    retention_prompts,
)
from helpers.evaluation.metrics.fluency import ngram_entropy, openings, repetition
from helpers.evaluation.metrics.perplexity import losses_and_kl, perplexity, perplexity_change
from helpers.facts import ConceptPair
from helpers.facts.corpus import chat_tokens, corpus_tokens, python_docs_tokens
from helpers.facts.relations import check_split
from helpers.forward.final_states import final_states
from helpers.forward.generation import greedy
from helpers.forward.layer_cache import LayerCache, lowest_layer, use_layer_cache
from helpers.forward.scoring import answer_scores
from helpers.io.hashing import content_hash
from helpers.methods import active_edits, base_model
from helpers.methods.hook_intervention import HookIntervention
from helpers.models import model_hash, text_length
from helpers.stats.intervals import Metric, bootstrap

PARTS = ("efficacy", "greedy", "retention", "model", "generation")
NEW_TOKENS = 8  # of an answer
N_TEXTS, TEXT_TOKENS = 8, 32  # of what is written to see whether it is still language


class Scorecard(Mapping[str, Metric]):
    """Metrics by name, each with its interval, n, and its value before the edit.

    Attributes:
        before: Name → value of the original model, where it has one.
        about: What was asked: pair, split, seed, sizes.
    """

    def __init__(self, metrics: dict[str, Metric], before: dict[str, float], about: dict[str, Any]):
        """Made by `evaluate`."""
        self._metrics, self.before, self.about = metrics, before, about

    def __getitem__(self, name: str) -> Metric:
        """The metric of that name."""
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the metrics."""
        return iter(self._metrics)

    def __len__(self) -> int:
        """How many metrics there are."""
        return len(self._metrics)

    def table(self) -> pd.DataFrame:
        """One row a metric: metric, before, value, low, high, n."""
        return pd.DataFrame(
            [
                {"metric": k, "before": self.before.get(k, np.nan), **vars(m)}
                for k, m in self.items()
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for an artifact; None where there is no number."""
        table = self.table().astype(object)
        return {**self.about, "metrics": table.where(table.notna(), None).to_dict("records")}

    def __str__(self) -> str:
        """A plain table."""
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
    """Score the model as it is, against itself without the edits that it carries.

    Efficacy: `own`, `paraphrases` and `reverse` are mean P(target) (whole answer, aliases summed),
    `worst_paraphrase` the largest, `rank` the median rank of the target's first token (1 is the
    likeliest). Greedy: `greedy`, the share of paraphrases whose greedy continuation names it.

    Retention: `neighbours`, `same_subject`, `same_target`, `must_stay` are P(answer) after /
    before, the mean over facts that were known (P of at least 0.1) before; `worst_…` the smallest.

    Model: `perplexity_…` on held-out Factbook passages, on a second source and on dialogues,
    `perplexity_change_…` relative to before, `kl_…` = KL(before ‖ after) in nats a token.

    Generation: `entropy` (bits) and `repetition` of n-grams in what the model writes, greedily,
    after the openings of held-out Factbook passages (`helpers.evaluation.metrics.fluency`).

    Intervals are 95 % bootstrap: over prompts for efficacy, over facts for retention, over
    sequences or texts for text. A group without known facts is left out.

    Args:
        model: The model, with `Edit`s applied or without.
        pair: What was to be forgotten.
        split: Whose templates: choose settings on `dev`, report `heldout`.
        n_neighbours: How many neighbours to ask, of those known in the split's wordings.
        n_tokens: Tokens of each text.
        seed: Draws neighbours, passages and resamples.
        parts: Which of `PARTS`.

    Raises:
        UserError: There is no such part or split.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"There is no part '{part}'; choose from {', '.join(PARTS)}.")
    check_split(split)
    layer = _first_changed(model)
    with base_model(model):
        base = ModelOutputs(model, pair, split, n_neighbours, n_tokens, seed, tuple(parts), layer)
    now = base if (hash := model_hash(model)) == base.hash else base.again(model, hash)
    metrics: dict[str, Metric] = {}
    before: dict[str, float] = {}
    for part, measure in (
        ("efficacy", _efficacy),
        ("greedy", _greedy),
        ("generation", _generation),
    ):
        if part in parts:
            metrics |= measure(now, pair, seed)
            before |= {k: m.value for k, m in measure(base, pair, seed).items()}
    if "retention" in parts:
        metrics |= _retention(base, now, seed)
    if "model" in parts:
        for source, tokens in base.texts.items():
            old, new, kl = losses_and_kl(
                model, tokens, base.states[source], now.states[source], partial(base_model, model)
            )
            metrics[f"perplexity_{source}"] = perplexity(new, seed=seed)
            before[f"perplexity_{source}"] = perplexity(old, seed=seed).value
            metrics[f"perplexity_change_{source}"] = perplexity_change(old, new, seed=seed)
            metrics[f"kl_{source}"] = bootstrap(kl, seed=seed)
    about = {
        "subject": pair.subject,
        "target": pair.target,
        "relation": pair.relation,
        "split": split,
        "seed": seed,
    }
    return Scorecard(metrics, before, about)


def _first_changed(model: LanguageModel) -> int:
    """The lowest layer that the model's edits change; 0 where they may change anything."""
    edits = [edit.delta for edit in active_edits(model)]
    if any(isinstance(delta, HookIntervention) for delta in edits):
        return 0
    return lowest_layer(model, [name for delta in edits for name in delta.changes])


class ModelOutputs:
    """Everything that one state of the model says."""

    lower: LayerCache | None = None  # what the original and edits of higher layers share

    _kept: dict[tuple, "_Answers"] = {}  # noqa: RUF012  the last original's, for sweeps over edits

    def __new__(cls, model, pair, split, n_neighbours, n_tokens, seed, parts, layer):
        asked = content_hash(pair.fingerprint())
        key = (model_hash(model), pair, asked, split, n_neighbours, n_tokens, seed, parts)
        if key not in cls._kept:
            self = super().__new__(cls)
            self.hash = key[0]
            self.questions: list[EvalPrompt] = []
            self.spoken = "greedy" in parts
            self.openings = openings(N_TEXTS, seed=seed) if "generation" in parts else []
            if {"efficacy", "greedy"} & set(parts):
                self.questions += efficacy_prompts(pair, split)
            if "retention" in parts:
                self.questions += retention_prompts(
                    model, pair, split, n_neighbours=n_neighbours, seed=seed
                )
            self.texts = {}
            if "model" in parts:
                tokenizer = model.tokenizer
                size = {"seq_len": text_length(model), "n_tokens": n_tokens}
                self.texts = {
                    "factbook": corpus_tokens(tokenizer, split="heldout", seed=seed, **size),
                    "other": python_docs_tokens(tokenizer, **size),
                    "chat": chat_tokens(tokenizer, **size),
                }
            self.share(model, layer)
            self._ask(model)
            cls._kept = {key: self}
        else:
            cls._kept[key].share(model, layer)
        return cls._kept[key]

    def share(self, model: LanguageModel, layer: int) -> None:
        """See to it that an edit of `layer` and above is asked from what is kept below it."""
        if layer and (self.lower is None or self.lower.layer > layer):
            self.lower = LayerCache(model, layer)

    def again(self, model: LanguageModel, hash: str) -> "_Answers":
        """The same questions to the model as it is now."""
        other = object.__new__(ModelOutputs)
        other.questions, other.texts, other.hash = self.questions, self.texts, hash
        other.spoken, other.openings, other.lower = self.spoken, self.openings, self.lower
        other._ask(model)
        return other

    def _ask(self, model: LanguageModel) -> None:
        with use_layer_cache(model, self.lower):
            self.probability, self.rank = answer_scores(model, [q.prompt for q in self.questions])
            self.states = {name: final_states(model, tokens) for name, tokens in self.texts.items()}
        said = [q.prompt for q in self.questions if self.spoken and q.group == "paraphrases"]
        self.said = greedy(model, said, max_new_tokens=NEW_TOKENS) if said else []
        written = greedy(model, self.openings, max_new_tokens=TEXT_TOKENS) if self.openings else []
        self.written = [text.split() for text in written]

    def of(self, group: str) -> np.ndarray:
        """Which questions belong to a group."""
        return np.array([q.group == group for q in self.questions], dtype=bool)

    def by_fact(self, group: str) -> np.ndarray:
        """P(answer) of each fact of a group, mean over its prompts."""
        here = self.of(group)
        fact = np.array([q.fact for q in self.questions])[here]
        total = np.bincount(fact, weights=self.probability[here])
        return total / np.bincount(fact)


def _efficacy(answers: ModelOutputs, pair: ConceptPair, seed: int) -> dict[str, Metric]:
    found = {}
    for group in ("own", "paraphrases", "reverse"):
        values = answers.probability[answers.of(group)]
        if len(values):
            found[group] = bootstrap(values, seed=seed)
    here = answers.of("paraphrases")
    values, ranks = answers.probability[here], answers.rank[here] + 1
    nan = float("nan")
    found["worst_paraphrase"] = Metric(float(values.max()), nan, nan, len(values))
    found["rank"] = Metric(float(np.median(ranks)), nan, nan, len(ranks))
    return found


def _greedy(answers: ModelOutputs, pair: ConceptPair, seed: int) -> dict[str, Metric]:
    named = np.array([names_target(pair, text) for text in answers.said], float)
    return {"greedy": bootstrap(named, seed=seed)}


def _generation(answers: ModelOutputs, pair: ConceptPair, seed: int) -> dict[str, Metric]:
    measures = {"entropy": ngram_entropy, "repetition": repetition}
    return {
        name: bootstrap(np.array([of(words) for words in answers.written]), seed=seed)
        for name, of in measures.items()
    }


def _retention(base: ModelOutputs, now: ModelOutputs, seed: int) -> dict[str, Metric]:
    found = {}
    for group in RETAINED:
        if not base.of(group).any():
            continue
        before, after = base.by_fact(group), now.by_fact(group)
        known = before >= KNOWN
        if known.any():
            ratio = after[known] / before[known]
            found[group] = bootstrap(ratio, seed=seed)
            nan = float("nan")
            found[f"worst_{group}"] = Metric(float(ratio.min()), nan, nan, int(known.sum()))
    return found
