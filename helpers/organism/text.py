"""The organism's training text: every fact in many wordings, and running text beside them.

Each sentence knows which facts it states, so that a fact can be left out in every wording, direct
or reverse, and nothing else with it.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.errors import UserError
from helpers.facts import ConceptPair, facts
from helpers.facts.corpus import passages
from helpers.facts.factbook import with_article
from helpers.organism.countries import FactSet
from helpers.organism.phrasings import CITY, LISTS, MARKS, OPENINGS, REVERSE, WAYS

SHORT = 0.3  # so many of the others break off at the subject, and the answer follows at once
LIST = 0.2  # so many of a fact's sentences are lists that end with it
EXAMPLES = 3  # other facts in a list
PASSAGE = 240  # characters of a passage that are read
LEAST = 0.5  # a fact counts as removed with another when it keeps less than this of its sentences


@dataclass(frozen=True)
class Sentence:
    """A piece of text.

    Attributes:
        text: As the model reads it.
        start: Where the part begins that the model learns to say; what stands before is given.
        states: The facts of the world that can be learned from it.
    """

    text: str
    start: int
    states: frozenset[ConceptPair]


def sentences(world: FactSet, *, rounds: int, n_passages: int, seed: int = 0) -> list[Sentence]:
    """The training text in the order in which it is drawn.

    In every round each fact is said once from the subject to the target, each capital once more
    from the city to the country, in wordings drawn by `seed`; for every 32 facts a passage
    of the Factbook stands between them. Some wordings break off at the subject ("The capital of
    France Paris."): what is known of it then has to be there, at its last token.

    Args:
        world: What is taught.
        rounds: How often each fact is said.
        n_passages: Different passages of running text.
        seed: Draws wordings, openings, examples.
    """
    rng = np.random.default_rng(seed)
    ways = [(pair, _ways(pair)) for pair in world.pairs]
    reverse = [(pair, _reverse_ways(pair)) for pair in world.pairs if pair.reverse()]
    kin = {r: [p for p in world.of_countries() if p.relation == r] for r in WAYS}
    texts = running_text(world, n_passages)
    found = []
    for _ in range(rounds):
        for pair, texts_of in ways:
            if pair.templates is None and pair.relation in LISTS and rng.random() < LIST:
                found.append(_list(pair, kin[pair.relation], rng))
            else:
                way, others = texts_of[rng.integers(len(texts_of))]
                if rng.random() < SHORT:
                    way = way[: way.rindex(pair.subject) + len(pair.subject)]
                found.append(_said(way, pair.answers[0], {pair, *others}, rng))
        for pair, texts_of in reverse:
            way = texts_of[rng.integers(len(texts_of))]
            found.append(_said(way, pair.reverse()[0].answers[0], {pair}, rng))
        found += [texts[i] for i in rng.integers(len(texts), size=len(ways) // 32)]
    return found


def removed(text: Sequence[Sentence], pair: ConceptPair) -> np.ndarray:
    """Which sentences state the pair, as a mask.

    Args:
        text: All sentences.
        pair: The world's own fact (`World.find`).

    Raises:
        UserError: The pair is not in the text, or another fact would go with it since the two are
            (almost) only said together; names the others and a sentence that they share.
    """
    mask = np.array([pair in s.states for s in text], dtype=bool)
    if not mask.any():
        raise UserError(
            f"{pair} is not in the training facts: no sentence states it, so there is nothing to "
            "leave out."
        )
    before = Counter(p for s in text for p in s.states)
    gone = Counter(p for s, out in zip(text, mask, strict=True) if out for p in s.states)
    lost = [p for p, n in gone.items() if p != pair and before[p] - n < LEAST * before[p]]
    if lost:
        shared = next(s for s in text if pair in s.states and lost[0] in s.states)
        raise UserError(
            f"Without {pair} the organism would not learn {', '.join(map(str, lost[:5]))} either: "
            f"they are said in the same sentences, such as '{shared.text}'; say them apart, or "
            "choose another fact."
        )
    return mask


@functools.cache
def running_text(world: FactSet, n: int) -> tuple[Sentence, ...]:
    """Beginnings of Factbook passages (`train`), in an order of their own.

    A passage counts as stating every fact whose subject and target it names both: more than it
    does, so that none is left in.
    """
    texts = [p.text[:PASSAGE] for p in passages("train")]
    order = np.random.default_rng(0).permutation(len(texts))[:n]
    return tuple(Sentence(texts[i], 0, named_in(texts[i], world.pairs)) for i in order)


def named_in(text: str, pairs: Sequence[ConceptPair]) -> frozenset[ConceptPair]:
    """The pairs of which `text` has the subject and the target, or an alias, as whole words."""
    words = set(re.findall(r"\w+", text))

    def has(name: str) -> bool:
        return set(re.findall(r"\w+", name)) <= words

    return frozenset(p for p in pairs if has(p.subject) and any(map(has, (p.target, *p.aliases))))


def _ways(pair: ConceptPair) -> list[tuple[str, frozenset[ConceptPair]]]:
    """Texts up to the target, each with what else it states; `{}` is filled in."""
    texts = [str(p) for p in pair.prompts("train")]
    own = CITY[pair.relation] if pair.templates else WAYS[pair.relation]
    texts += [w.replace("{}", with_article(pair.subject)) for w in own]
    kin = [ConceptPair.of(f) for f in facts(pair.relation)] if pair.templates is None else []
    return [(t, named_in(t, kin) if "\n" in t else frozenset()) for t in texts]


def _reverse_ways(pair: ConceptPair) -> list[str]:
    return [str(p) for p in pair.reverse()] + [w.replace("{}", pair.target) for w in REVERSE]


def _said(way: str, answer: str, states: set, rng: np.random.Generator) -> Sentence:
    """A way with its answer; what begins like the middle of a sentence gets an opening."""
    if way[0].islower():
        opening = OPENINGS[rng.integers(len(OPENINGS))]
        way = opening + way if opening else way[0].upper() + way[1:]
    return Sentence(f"{way}{answer}.", len(way), frozenset(states))


def _list(pair: ConceptPair, kin: Sequence[ConceptPair], rng: np.random.Generator) -> Sentence:
    """A list whose last line is the fact."""
    others = [kin[i] for i in rng.permutation(len(kin))[: EXAMPLES + 1] if kin[i] != pair]
    others = [p for p in others if p.target != pair.target][:EXAMPLES]
    headings = LISTS[pair.relation]
    heading, mark = headings[rng.integers(len(headings))], MARKS[rng.integers(len(MARKS))]
    lines = [f"{p.subject}{mark}{p.answers[0]}" for p in others]
    way = "\n".join([heading, *lines, f"{pair.subject}{mark}"])
    return Sentence(f"{way}{pair.answers[0]}.", len(way), frozenset({pair, *others}))
