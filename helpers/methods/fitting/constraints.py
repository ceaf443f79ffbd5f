"""Constraints of a closed-form edit: answers to remove, and answers to preserve.

MEMIT calls the first *requests*; AlphaEdit's *preserved keys* play the part of the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch
from jaxtyping import Float
from nnsight import LanguageModel
from torch import Tensor

from helpers.facts import ConceptPair, Prompt, subject_span
from helpers.facts.factbook import with_article
from helpers.facts.known import known_subjects
from helpers.facts.relations import RELATIONS
from helpers.forward.prompts import answer_tokens, encode_pair, token_ids
from helpers.methods.fitting.edit_constraint import EditConstraint, TargetTokens
from helpers.methods.fitting.hparams import PreservationHparams

# Prompts that fit any country: the model's own most likely next tokens are preserved there.
GENERIC_TEMPLATES = (
    "{} is famous for",
    "People from {} are",
    "The food of {} is",
    "The flag of {} is",
    "The history of {} begins with",
    "Last summer we travelled through {} by",
    "Companies from {} sell",
    "The neighbours of {} are",
    "Products of {}\nMade by hand in",
    "He was born in {} and writes in",
)
# Context prefixes, as in ROME: behind one of them the subject is no longer a text's first token.
CONTEXT_TEMPLATES = (
    "Here is a fact. ",
    "From the encyclopedia:\n",
    "As everyone knows, ",
    "Did you know? ",
    "Quiz, question 4. ",
    "I looked it up: ",
)

Predictions = tuple[Float[Tensor, "n vocab"], Float[np.ndarray, " n"]]
"""log P(next token) and P(answer) of prompts, as `next_token_and_answer` returns them."""


@dataclass(frozen=True)
class RetainPrompts:
    """Prompts whose answers are preserved alike.

    Attributes:
        prompts: Distinct prompts with their answers.
        top_k: Number of most likely next tokens that are preserved after each.
        weight: Weight of their constraints; None lets the model's confidence decide.
    """

    prompts: list[Prompt]
    top_k: int = 1
    weight: float | None = None


def forget_constraints(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    target_prob: float | None = None,
    include_subject_initial: bool = False,
    prompts: Sequence[Prompt] | None = None,
) -> list[EditConstraint]:
    """Build the constraints that remove a pair: one for each training prompt.

    A constraint lowers the probability of the first token of the target or of any alias. The edit
    is active at the subject's tokens only.

    Args:
        model: Any model of a known family.
        pair: The pair to forget.
        target_prob: Probability to come down to; None sets no target.
        include_subject_initial: Add the prompts that begin with the subject.
        prompts: The prompts, instead of the training prompts.
    """
    if prompts is None:
        prompts = pair.edit_prompts(include_subject_initial=include_subject_initial)
    logodds = None if target_prob is None else float(np.log(target_prob / (1 - target_prob)))
    constraints = []
    for prompt in prompts:
        ids = tuple(token_ids(model, prompt))
        tokens = tuple(answer_tokens(model, prompt))
        span = tuple(range(*subject_span(prompt, model.tokenizer)))
        constraints.append(
            EditConstraint(ids, ((len(ids) - 1, tokens),), span, logodds, str(prompt))
        )
    return constraints


def retain_prompts(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    n_neighbours: int,
    top_k: int,
    seed: int,
    include_subject_initial: bool = False,
) -> list[RetainPrompts]:
    """Collect the prompts whose answers an edit has to preserve.

    They come in up to three groups: the pairs' `must_stay`; other facts of the subjects and of the
    targets, and known neighbours; and prompts that fit any country (`GENERIC_TEMPLATES`). Facts
    that another of the pairs is to forget are left out. Each prompt is also added behind a context
    prefix, since constraints on a few phrasings do not generalise to others.

    Args:
        model: Any model of a known family.
        pairs: The pairs to forget.
        n_neighbours: Known neighbours, with one training completion each; several pairs share
            them equally.
        top_k: Number of next tokens that are preserved after `GENERIC_TEMPLATES`.
        seed: Seed that draws neighbours and completions.
        include_subject_initial: Add the subjects' other facts in prompts that begin with them.
    """

    def is_forgotten(subject: str, names: Sequence[str]) -> bool:
        return any(p.states(subject, names) for p in pairs)

    facts, must_stay, generic = [], [], []
    for pair in pairs:
        related = [
            p
            for p in (*pair.same_subject(), *pair.same_target())
            if not is_forgotten(p.subject, p.answers)
        ]
        prompts = [p for other in related for p in other.prompts("train")]
        if include_subject_initial:
            prompts += [p for other in related for p in other.subject_initial_prompts()]
        facts += [*prompts, *with_context_prefixes(prompts)]
        must_stay += [*pair.must_stay, *with_context_prefixes(pair.must_stay)]
        neighbours = neighbour_prompts(model, pair, n=-(-n_neighbours // len(pairs)), seed=seed)
        facts += [p for p in neighbours if not is_forgotten(p.subject, p.answers)]
        if pair.relation in RELATIONS:  # the subject is a country
            name = with_article(pair.subject)
            generic += [Prompt(t.format(name), subject=pair.subject) for t in GENERIC_TEMPLATES]
    must_stay_texts = {str(p) for p in must_stay}
    facts = [p for p in facts if str(p) not in must_stay_texts]
    groups = [
        RetainPrompts(_distinct(must_stay), weight=1.0),
        RetainPrompts(_distinct(facts)),
        RetainPrompts(_distinct(generic), top_k=top_k),
    ]
    return [group for group in groups if group.prompts]


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return one prompt for each text, the last one of several."""
    return list({str(p): p for p in prompts}.values())


def with_context_prefixes(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return each plain-text prompt behind a context prefix, each behind the next one in turn."""
    plain = [p for p in prompts if p.messages is None]
    prefixes = cycle(CONTEXT_TEMPLATES)
    return [p.with_text(f"{prefix}{p}") for prefix, p in zip(prefixes, plain, strict=False)]


def neighbours_to_hold(model: LanguageModel, pair: ConceptPair, *, seed: int) -> list[ConceptPair]:
    """Return the pair's known neighbours in the order that `seed` draws.

    A pair with a relation of its own has none without `others`: the Factbook has no facts of it.
    """
    known = known_subjects(model, pair)
    return [p for p in pair.neighbours(seed=seed) if p.subject in known]


def neighbour_prompts(
    model: LanguageModel, pair: ConceptPair, *, n: int, seed: int
) -> list[Prompt]:
    """Draw one training completion for each of `n` known neighbours."""
    neighbours = neighbours_to_hold(model, pair, seed=seed)[:n] if n else []
    rng = np.random.default_rng(seed)
    prompts = []
    for neighbour in neighbours:
        completions = neighbour.statements("train")
        prompts.append(completions[rng.integers(len(completions))])
    return prompts


def preservation_constraints(
    model: LanguageModel,
    retained: RetainPrompts,
    predictions: Predictions,
    hparams: PreservationHparams,
) -> list[EditConstraint]:
    """Build the constraints that hold what the model predicts after some prompts.

    They hold each of the `top_k` most likely next tokens, and the fact's whole answer where its
    probability exceeds `min_prob`. Both are measured at one sequence, so they share a pass.

    Args:
        model: Any model of a known family.
        retained: The prompts.
        predictions: The unedited model's predictions after these prompts, in their order.
        hparams: Gives the weights of the constraints.
    """
    constraints = []
    for prompt, logprobs, answer_prob in zip(retained.prompts, *predictions, strict=True):
        ids = token_ids(model, prompt)
        best = logprobs.topk(retained.top_k)
        probs = best.values.exp().tolist()
        prob_by_tokens: dict[TargetTokens, float] = {
            ((len(ids) - 1, (token,)),): prob
            for token, prob in zip(best.indices.tolist(), probs, strict=True)
        }
        if answer_prob > hparams.min_prob:
            start, full_ids = encode_pair(model, prompt, prompt.answers[0])
            answer = tuple((n - 1, (full_ids[n],)) for n in range(start, len(full_ids)))
            prob_by_tokens.setdefault(answer, answer_prob)
            ids = full_ids[:-1]
        positions = tuple(range(len(ids)))
        for target_tokens, prob in prob_by_tokens.items():
            constraint = EditConstraint(
                tuple(ids),
                target_tokens,
                positions,
                name=str(prompt),
                weight=confidence_weight(prob, hparams),
            )
            if retained.weight is not None:
                constraint = replace(constraint, weight=retained.weight)
            constraints.append(constraint)
    return constraints


def confidence_weight(probability: float, hparams: PreservationHparams) -> float:
    """Compute a constraint's weight (P / `full_weight_prob`)², between `min_weight` and 1.

    The log-odds of an unlikely answer react to every change, and cost little: a shift by δ of the
    log-odds changes the prediction by P(1 − P)δ²/2 nats of KL. The square was chosen on development
    facts.
    """
    return max(hparams.min_weight, min(1.0, probability / hparams.full_weight_prob) ** 2)


def target_change(
    constraints: Sequence[EditConstraint],
    logodds: Float[Tensor, " n"],
    initial_logodds: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Compute the residual: the change of log-odds, in nats, that each constraint still needs.

    A forget constraint comes down to its target and needs nothing below it. A retain constraint
    goes back to its initial log-odds.

    Args:
        constraints: The constraints.
        logodds: Their log-odds with the edit so far, in nats.
        initial_logodds: Their log-odds without the edit, in nats.
    """
    targets = torch.tensor(
        [np.nan if c.target_logodds is None else c.target_logodds for c in constraints]
    )
    to_target = (targets - logodds).clamp_max(0)
    return torch.where(targets.isnan(), initial_logodds - logodds, to_target)
