"""The scorecard of a request for text: its loss, that of what must stay, and answers to questions.

The zero of a text is its floor, the loss of the original model on the same text in disorder: the
words of each document in random order, or answers that belong to other questions. Text that was
forgotten costs as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.evaluation.scorecard import NAN, Scorecard
from helpers.facts import Prompt
from helpers.facts.known import KNOWN_PROB
from helpers.forward.scoring import answer_probability
from helpers.io.hashing import content_hash
from helpers.methods import base_model
from helpers.models import model_hash, unembed
from helpers.requests import Corpus, TextRequest
from helpers.requests.capability_check import answered
from helpers.stats.intervals import Metric, linearized_ratio, mean_interval
from helpers.training.examples import (
    Batch,
    in_batches,
    label_states,
    mean_per_sequence,
    sequence_losses,
    token_losses,
)

BATCH_SIZE = 8  # sequences in a forward pass


@dataclass(frozen=True)
class CorpusOutputs:
    """Outputs of one state of a model on a corpus.

    Attributes:
        states: Final hidden states at the labels of each batch.
        losses: Mean token NLL of each sequence, in nats.
    """

    states: list[Float[Tensor, "m d_model"]]
    losses: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class TextOutputs:
    """Outputs of one state of a model on all that a request measures.

    Attributes:
        corpora: Name → outputs.
        questions: Group → (P(answer), 1 if the whole answer is the likeliest) of each question.
    """

    corpora: dict[str, CorpusOutputs]
    questions: dict[str, tuple[np.ndarray, np.ndarray]]


_LAST_BASE: dict[tuple, tuple[TextOutputs, dict[str, float]]] = {}  # for sweeps over edits


class TextScorecard(Scorecard):
    """The scorecard of a text, with the floors.

    Attributes:
        floors: Name of a held-out text to forget → its floor, in nats a token.
    """

    floors: dict[str, float]


def evaluate_text(
    model: LanguageModel, request: TextRequest, *, n_tokens: int = 2048, split: str = "heldout"
) -> TextScorecard:
    """Score the model with its edits on a request for text, and without them for comparison.

    For each held-out text to forget: `loss_…`, its mean NLL in nats a token, and `forgotten_…`, the
    share (after − before) / (floor − before) of the way to its floor: 1 is as bad as shuffled
    words, more is worse than they are. For each text that must stay: `loss_…`, `change_…`, the
    relative change of its mean loss, and `kl_…` = KL(before ‖ after) in nats a token. For
    questions: `answers` and `retained_answers`, the share whose whole answer is the likeliest,
    token by token, and `retained_ratio`, the mean of min(1, P(answer) after / before) over what was
    known.

    Intervals are 95 % intervals by Student's t over sequences or questions.

    Args:
        model: The model, with `Edit`s applied or without.
        request: What was to be forgotten.
        n_tokens: Tokens of each corpus.
        split: `heldout`, or `dev` to choose strengths: the text to forget is then that of `dev`.

    Raises:
        UserError: A corpus has no text.
    """
    targets = (request.dev,) if split == "dev" else request.heldout
    kept = request.retained if split == "heldout" else request.retain
    batches = {
        corpus.name: list(in_batches(corpus.examples(model, n_tokens=n_tokens), BATCH_SIZE))
        for corpus in (*targets, *kept)
    }
    with base_model(model):
        base, floors = _base(model, request, batches, targets, n_tokens)
        base_hash = model_hash(model)
    now = base if model_hash(model) == base_hash else _outputs(model, request, batches)
    metrics: dict[str, Metric] = {}
    before: dict[str, float] = {}
    units: dict[str, Float[np.ndarray, " n"]] = {}
    for corpus in (*targets, *kept):
        name = corpus.name
        old, new = base.corpora[name].losses, now.corpora[name].losses
        metrics[f"loss_{name}"] = mean_interval(new)
        before[f"loss_{name}"] = float(old.mean())
        if corpus in targets:
            units[f"forgotten_{name}"] = (new - old) / (floors[name] - old.mean())
            metrics[f"forgotten_{name}"] = mean_interval(units[f"forgotten_{name}"])
            before[f"forgotten_{name}"] = 0.0
        else:
            units[f"change_{name}"] = linearized_ratio(new, old) - 1
            metrics[f"change_{name}"] = mean_interval(units[f"change_{name}"])
            before[f"change_{name}"] = 0.0
            metrics[f"kl_{name}"] = mean_interval(_kl(model, batches[name], base, now, name))
    for group, values in _answers(base, now).items():
        metrics[group], before[group] = values
    about = {"request": request.name, "kind": request.kind, "split": split}
    scorecard = TextScorecard(metrics, before, about, units)
    scorecard.floors = floors
    return scorecard


def _base(
    model: LanguageModel,
    request: TextRequest,
    batches: dict[str, list[Batch]],
    targets: Sequence[Corpus],
    n_tokens: int,
) -> tuple[TextOutputs, dict[str, float]]:
    """Return the original's outputs and each target's floor, computed once for a sweep of edits."""
    read = [(name, *(b.ids for b in of_corpus)) for name, of_corpus in batches.items()]
    key = (model_hash(model), request.name, *(content_hash(*ids) for ids in read), n_tokens)
    if key not in _LAST_BASE:
        floors = {c.name: corpus_floor(model, c, n_tokens) for c in targets}
        outputs = _outputs(model, request, batches), floors
        _LAST_BASE.clear()
        _LAST_BASE[key] = outputs
    return _LAST_BASE[key]


def corpus_floor(model: LanguageModel, corpus: Corpus, n_tokens: int) -> float:
    """Compute the mean loss on the corpus with the words of each document in random order."""
    examples = corpus.shuffled().examples(model, n_tokens=n_tokens)
    return float(sequence_losses(model, examples, batch_size=BATCH_SIZE).mean())


def _outputs(
    model: LanguageModel, request: TextRequest, batches: dict[str, list[Batch]]
) -> TextOutputs:
    """Compute what the model's present state makes of a request."""
    corpora = {name: _corpus_outputs(model, of_corpus) for name, of_corpus in batches.items()}
    groups: dict[str, tuple[Prompt, ...]] = {
        "answers": request.questions,
        "retained_answers": request.retained_questions,
    }
    questions = {
        name: (answer_probability(model, prompts), answered(model, prompts))
        for name, prompts in groups.items()
        if prompts
    }
    return TextOutputs(corpora, questions)


@torch.inference_mode()
def _corpus_outputs(model: LanguageModel, batches: Sequence[Batch]) -> CorpusOutputs:
    """Compute states and losses of a corpus."""
    states, losses = [], []
    for batch in batches:
        states.append(label_states(model, batch))
        logits = unembed(model, states[-1]).float()
        losses.append(mean_per_sequence(token_losses(logits, batch), batch).cpu().double().numpy())
    return CorpusOutputs(states, np.concatenate(losses))


@torch.inference_mode()
def _kl(
    model: LanguageModel,
    batches: Sequence[Batch],
    base: TextOutputs,
    now: TextOutputs,
    name: str,
) -> Float[np.ndarray, " n"]:
    """Compute the mean KL(before ‖ after) of each sequence, in nats a token."""
    parts = []
    states = zip(base.corpora[name].states, now.corpora[name].states, strict=True)
    for batch, (old, new) in zip(batches, states, strict=True):
        with base_model(model):
            p = unembed(model, old).float().log_softmax(-1)
        q = unembed(model, new).float().log_softmax(-1)
        parts.append(mean_per_sequence((p.exp() * (p - q)).sum(-1), batch).cpu().double().numpy())
    return np.concatenate(parts)


def _answers(base: TextOutputs, now: TextOutputs) -> dict[str, tuple[Metric, float]]:
    """Compute the metrics of questions with their values before the edit."""
    metrics = {}
    for group, (probability, is_right) in now.questions.items():
        old_probability, was_right = base.questions[group]
        metrics[group] = (mean_interval(is_right), float(was_right.mean()))
        known = old_probability >= KNOWN_PROB
        if group == "retained_answers" and known.any():
            ratio = (probability[known] / old_probability[known]).clip(max=1)
            metrics["retained_ratio"] = (mean_interval(ratio), 1.0)
    return metrics


def worst_change(scorecard: Scorecard) -> Metric:
    """Return the largest relative change of loss over the texts that must stay."""
    changes = [metric for name, metric in scorecard.items() if name.startswith("change_")]
    return max(changes, key=lambda metric: metric.value, default=Metric(NAN, NAN, NAN, 0))
