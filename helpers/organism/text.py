"""Training text of the organism: every fact in many paraphrases, and running text beside them.

Each sentence lists the facts that it states, so that a fact can be removed in every paraphrase,
direct or reverse, and nothing else with it.
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
from helpers.organism.phrasings import (
    CITY_TEMPLATES,
    CONTEXT_PREFIXES,
    LIST_HEADINGS,
    REVERSE_TEMPLATES,
    SEPARATORS,
    TEMPLATES,
)

SHORT_FRACTION = 0.3  # of the other sentences: the target follows the subject at once
LIST_FRACTION = 0.2  # of a fact's sentences: lists that end with it
N_LIST_EXAMPLES = 3  # other facts in a list
PASSAGE_CHARACTERS = 240  # of a passage that are in the text
MIN_FRACTION_LEFT = 0.5  # a fact with fewer of its sentences left counts as removed with another
FACTS_PER_PASSAGE = 32


@dataclass(frozen=True)
class Sentence:
    """A piece of text.

    Attributes:
        text: The text.
        labels_start: First character that the model is trained to predict; the rest is context.
        facts: The facts that it states.
    """

    text: str
    labels_start: int
    facts: frozenset[ConceptPair]


def sentences(
    fact_set: FactSet, *, n_repeats: int, n_passages: int, seed: int = 0
) -> list[Sentence]:
    """Draw the training text, in order.

    In every repetition each fact has one sentence from the subject to the target, and each capital
    one more from the city to the country, by templates drawn by `seed`. For every 32 facts a
    passage of the Factbook stands between them. Some templates end at the subject ("The capital of
    France Paris."): the fact then has to be represented there, at the subject's last token.

    Args:
        fact_set: The facts.
        n_repeats: Sentences of each fact.
        n_passages: Different passages of running text.
        seed: Draws templates, prefixes and list examples.
    """
    rng = np.random.default_rng(seed)
    prompts = [(pair, _prompts(pair)) for pair in fact_set.pairs]
    reverse = [(pair, _reverse_prompts(pair)) for pair in fact_set.pairs if pair.reverse()]
    same_relation = {r: [p for p in fact_set.of_countries() if p.relation == r] for r in TEMPLATES}
    running = running_text(fact_set, n_passages)
    text = []
    for _ in range(n_repeats):
        for pair, of_pair in prompts:
            has_lists = pair.templates is None and pair.relation in LIST_HEADINGS
            if has_lists and rng.random() < LIST_FRACTION:
                text.append(_list(pair, same_relation[pair.relation], rng))
            else:
                prompt, others = of_pair[rng.integers(len(of_pair))]
                if rng.random() < SHORT_FRACTION:
                    prompt = prompt[: prompt.rindex(pair.subject) + len(pair.subject)]
                text.append(_sentence(prompt, pair.answers[0], {pair, *others}, rng))
        for pair, reverse_prompts in reverse:
            prompt = reverse_prompts[rng.integers(len(reverse_prompts))]
            text.append(_sentence(prompt, pair.reverse()[0].answers[0], {pair}, rng))
        drawn = rng.integers(len(running), size=len(prompts) // FACTS_PER_PASSAGE)
        text += [running[i] for i in drawn]
    return text


def removed(text: Sequence[Sentence], pair: ConceptPair) -> np.ndarray:
    """Compute the mask of sentences that state a fact.

    Args:
        text: All sentences.
        pair: A fact of the fact set (`FactSet.find`).

    Returns:
        (sentences,) True where the sentence states the fact.

    Raises:
        UserError: No sentence states the pair, or another fact would be removed with it since
            (almost) only the same sentences state it; names the others and such a sentence.
    """
    mask = np.array([pair in s.facts for s in text], dtype=bool)
    if not mask.any():
        raise UserError(
            f"{pair} is not in the training facts: no sentence states it, so there is nothing to "
            "leave out."
        )
    counts = Counter(p for s in text for p in s.facts)
    n_removed = Counter(p for s, out in zip(text, mask, strict=True) if out for p in s.facts)
    lost = [
        p
        for p, n in n_removed.items()
        if p != pair and counts[p] - n < MIN_FRACTION_LEFT * counts[p]
    ]
    if lost:
        shared = next(s for s in text if pair in s.facts and lost[0] in s.facts)
        raise UserError(
            f"Without {pair} the organism would not learn {', '.join(map(str, lost[:5]))} either: "
            f"they are said in the same sentences, such as '{shared.text}'; say them apart, or "
            "choose another fact."
        )
    return mask


@functools.cache
def running_text(fact_set: FactSet, n: int) -> tuple[Sentence, ...]:
    """Collect the beginnings of `n` Factbook passages (`train`), in a fixed shuffled order.

    A passage counts as stating every fact whose subject and target it names. That is more than it
    states, so that no statement is left in.
    """
    texts = [p.text[:PASSAGE_CHARACTERS] for p in passages("train")]
    order = np.random.default_rng(0).permutation(len(texts))[:n]
    return tuple(Sentence(texts[i], 0, named_facts(texts[i], fact_set.pairs)) for i in order)


def named_facts(text: str, pairs: Sequence[ConceptPair]) -> frozenset[ConceptPair]:
    """Find the facts of which `text` names the subject and the target, or an alias.

    Names are compared as sets of whole words.
    """
    words = set(re.findall(r"\w+", text))

    def has(name: str) -> bool:
        return set(re.findall(r"\w+", name)) <= words

    return frozenset(p for p in pairs if has(p.subject) and any(map(has, (p.target, *p.aliases))))


def _prompts(pair: ConceptPair) -> list[tuple[str, frozenset[ConceptPair]]]:
    """List texts up to the target, each with the other facts that it states."""
    texts = [str(p) for p in pair.prompts("train")]
    templates = (CITY_TEMPLATES if pair.templates else TEMPLATES)[pair.relation]
    texts += [t.replace("{}", with_article(pair.subject)) for t in templates]
    others = [ConceptPair.of(f) for f in facts(pair.relation)] if pair.templates is None else []
    return [(t, named_facts(t, others) if "\n" in t else frozenset()) for t in texts]


def _reverse_prompts(pair: ConceptPair) -> list[str]:
    templates = [t.replace("{}", pair.target) for t in REVERSE_TEMPLATES]
    return [str(p) for p in pair.reverse()] + templates


def _sentence(prompt: str, answer: str, states: set, rng: np.random.Generator) -> Sentence:
    """Append the answer; a prompt that starts in lower case gets a prefix."""
    if prompt[0].islower():
        prefix = CONTEXT_PREFIXES[rng.integers(len(CONTEXT_PREFIXES))]
        prompt = prefix + prompt if prefix else prompt[0].upper() + prompt[1:]
    return Sentence(f"{prompt}{answer}.", len(prompt), frozenset(states))


def _list(
    pair: ConceptPair, same_relation: Sequence[ConceptPair], rng: np.random.Generator
) -> Sentence:
    """Draw a list whose last line is the fact."""
    order = rng.permutation(len(same_relation))[: N_LIST_EXAMPLES + 1]
    others = [same_relation[i] for i in order if same_relation[i] != pair]
    others = [p for p in others if p.target != pair.target][:N_LIST_EXAMPLES]
    headings = LIST_HEADINGS[pair.relation]
    heading = headings[rng.integers(len(headings))]
    separator = SEPARATORS[rng.integers(len(SEPARATORS))]
    lines = [f"{p.subject}{separator}{p.answers[0]}" for p in others]
    prompt = "\n".join([heading, *lines, f"{pair.subject}{separator}"])
    return Sentence(f"{prompt}{pair.answers[0]}.", len(prompt), frozenset({pair, *others}))
