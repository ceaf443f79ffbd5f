"""What a closed-form edit asks: prompts whose answer must go, and answers that must stay."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
import torch
from nnsight import LanguageModel

from helpers.facts import ConceptPair, Prompt, known_facts, subject_span
from helpers.facts.factbook import with_article
from helpers.facts.relations import RELATIONS
from helpers.forward.batching import ForwardRunner
from helpers.forward.prompts import encode_pair, first_token, token_ids
from helpers.forward.scoring import next_token_and_answer
from helpers.methods.fitting.linearization import EditConstraint

MIN_PROB = 0.02  # a fact's answer is kept when it is at least so likely
FULL_WEIGHT_PROB = 0.5  # and as firmly as any from this probability on
MIN_WEIGHT = 0.02  # the least weight
GENERIC_TEMPLATES = (  # what may be said of any country: its own likeliest words are kept
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
TOP_K = 3  # so many of the likeliest words after each
CONTEXT_TEMPLATES = (  # what may come before a question: its subject is then no text's first token
    "Here is a fact. ",
    "From the encyclopedia:\n",
    "As everyone knows, ",
    "Did you know? ",
    "Quiz, question 4. ",
    "I looked it up: ",
)


def forget_constraints(
    model: LanguageModel, pair: ConceptPair, *, floor: float | None = None, first: bool = False
) -> list[EditConstraint]:
    """The pair's training prompts; the edit acts at the subject's tokens only.

    What has to go is the first token of the target, or of any alias.

    Args:
        model: Any model of a known family.
        pair: What to forget.
        floor: Probability to come down to; None has no goal.
        first: Also the prompts that begin with the subject.
    """
    goal = None if floor is None else float(np.log(floor / (1 - floor)))
    found = []
    for prompt in pair.edit_prompts(first=first):
        ids = tuple(token_ids(model, prompt))
        tokens = tuple(dict.fromkeys(first_token(model, prompt, a) for a in prompt.answers))
        span = tuple(range(*subject_span(prompt, model.tokenizer)))
        found.append(EditConstraint(ids, ((len(ids) - 1, tokens),), span, goal, str(prompt)))
    return found


def retain_constraints(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    *,
    n_neighbours: int,
    seed: int,
    first: bool = False,
    runner: ForwardRunner | None = None,
) -> list[EditConstraint]:
    """Other facts of the subjects and of the targets, what `must_stay`, and known neighbours.

    Of each prompt the model's own likeliest next token is kept, and the fact's whole answer where
    that is not unlikely; of openings that go with any country (`GENERIC_TEMPLATES`) the likeliest few. What is
    asked about the subject and the target is asked once more after one of `CONTEXT_TEMPLATES`: what holds
    in so few wordings alone does not hold in others. What another of the pairs is to forget is not
    held. What the model is not sure of is held less firmly (`confidence_weight`), but for `must_stay`.

    Args:
        model: Any model of a known family.
        pairs: What is forgotten.
        n_neighbours: Neighbours that the model knows, one training completion each; of several
            pairs each has its share.
        seed: Draws neighbours and completions.
        first: Also the subjects' other facts in prompts that begin with them.
        runner: Runs the model, and may keep what it sees.
    """

    def gone(subject: str, names: Sequence[str]) -> bool:
        return any(p.states(subject, names) for p in pairs)

    asked, must, about = [], [], []
    for pair in pairs:
        both = (*pair.same_subject(), *pair.same_target())
        others = [p for p in both if not gone(p.subject, p.answers)]
        mine = [p for other in others for p in other.prompts("train")]
        if first:
            mine += [p for other in others for p in other.first()]
        asked += [*mine, *with_context_prefixes(mine)]
        must += [*pair.must_stay, *with_context_prefixes(pair.must_stay)]
        near = neighbour_prompts(model, pair, n=-(-n_neighbours // len(pairs)), seed=seed)
        asked += [p for p in near if not gone(p.subject, p.answers)]
        if pair.relation in RELATIONS:  # the subject is a country
            name = with_article(pair.subject)
            about += [Prompt(t.format(name), subject=pair.subject) for t in GENERIC_TEMPLATES]
    firm = [
        replace(ask, weight=1.0) for ask in preservation_constraints(model, must, runner=runner)
    ]
    rest = [p for p in asked if p not in must]
    held = preservation_constraints(model, rest, runner=runner)
    return firm + held + preservation_constraints(model, about, words=TOP_K, runner=runner)


def with_context_prefixes(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt that is plain text after one of `CONTEXT_TEMPLATES`, the next one in turn."""
    plain = [p for p in prompts if p.messages is None]
    return [p.with_text(o + p) for o, p in zip(cycle(CONTEXT_TEMPLATES), plain, strict=False)]


def neighbour_prompts(
    model: LanguageModel, pair: ConceptPair, *, n: int, seed: int
) -> list[Prompt]:
    """One training completion of each of `n` known neighbours."""
    if not n or pair.relation not in RELATIONS:
        return []
    known = set(known_facts(model, pair.relation).query("known")["subject"])
    others = [p for p in pair.neighbours(seed=seed) if p.subject in known][:n]
    rng = np.random.default_rng(seed)
    found = []
    for other in others:
        ways = [p for p in other.prompts("train") if p.format == "completion"]
        found.append(ways[rng.integers(len(ways))])
    return found


def preservation_constraints(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    words: int = 1,
    runner: ForwardRunner | None = None,
) -> list[EditConstraint]:
    """Asks that hold the prompts' answers, whole, and the likeliest next tokens, where they are."""
    prompts = list({str(p): p for p in prompts}.values())
    if not prompts:
        return []
    logprobs, told = next_token_and_answer(model, prompts, runner=runner)
    found = []
    for prompt, row, sure in zip(prompts, logprobs, told, strict=True):
        ids = token_ids(model, prompt)
        best = row.topk(words)
        likely = best.values.exp().tolist()
        scored = {
            ((len(ids) - 1, (t,)),): p for t, p in zip(best.indices.tolist(), likely, strict=True)
        }
        if sure > MIN_PROB:
            start, whole = encode_pair(model, prompt, prompt.answers[0])
            scored.setdefault(tuple((n - 1, (whole[n],)) for n in range(start, len(whole))), sure)
            ids = whole[:-1]
        acts = tuple(range(len(ids)))
        found += [
            EditConstraint(tuple(ids), one, acts, name=str(prompt), weight=confidence_weight(p))
            for one, p in scored.items()
        ]
    return found


def confidence_weight(probability: float) -> float:
    """How firmly an answer is held, from `MIN_WEIGHT` to 1 (from `FULL_WEIGHT_PROB` on): (P / `FULL_WEIGHT_PROB`)².

    The log-odds of what a model hardly says swing with every change, and cost little: a shift by δ
    of an answer's log-odds changes what is said by P(1 − P)δ²/2 nats of KL. The square was chosen
    on development facts.
    """
    return max(MIN_WEIGHT, min(1.0, probability / FULL_WEIGHT_PROB) ** 2)


def target_change(
    asks: Sequence[EditConstraint], now: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    """Change of log-odds that each ask still needs, in nats.

    What is forgotten comes down to its goal, and is held where it is when it is below; what is
    kept goes back to what it was.
    """
    goals = torch.tensor([np.nan if a.goal is None else a.goal for a in asks])
    return torch.where(goals.isnan(), before - now, (goals - now).clamp_max(0))
