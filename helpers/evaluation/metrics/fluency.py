"""Fluency: is the generated text still language? Two metrics of greedy continuations.

They show a looping or broken model even where the likelihood of given text has hardly changed.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from helpers.errors import UserError
from helpers.facts.corpus import passages

OPENING = 12  # words of a passage that the model continues


def openings(n: int, *, seed: int = 0) -> list[str]:
    """Draw `n` held-out Factbook passages and return the first `OPENING` words of each."""
    texts = [p.text for p in passages("heldout")]
    order = np.random.default_rng(seed).permutation(len(texts))[:n]
    return [" ".join(texts[i].split()[:OPENING]) for i in order]


def repetition(words: Sequence[Hashable], *, n: int = 4) -> float:
    """Compute 1 − distinct n-grams / n-grams: 0 without repetition, towards 1 for a loop.

    Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (seq-rep-n). 0 for a
    text without a single n-gram.

    Raises:
        UserError: n is not positive.
    """
    grams = _grams(words, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def ngram_entropy(words: Sequence[Hashable]) -> float:
    """Compute the mean of 2/3 · H₂ and 4/3 · H₃, with H_n the entropy of n-grams in bits.

    It is 0 for one word again and again, or for nothing. It grows with the text's length, so
    compare texts of equal length. Zhang et al. 2018; "fluency" in Meng et al. 2022.
    """
    return float(np.mean([w * _entropy(_grams(words, n)) for n, w in ((2, 2 / 3), (3, 4 / 3))]))


def _entropy(grams: list[tuple]) -> float:
    if not grams:
        return 0.0
    p = np.array(list(Counter(grams).values())) / len(grams)
    return float(-(p * np.log2(p)).sum()) + 0.0  # no negative zero


def _grams(words: Sequence[Hashable], n: int) -> list[tuple]:
    if n < 1:
        raise UserError(f"n is {n}: an n-gram has at least one word.")
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
