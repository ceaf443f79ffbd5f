"""Arithmetic: sums and products of small numbers, asked in several forms, from a fixed seed."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from helpers.forward.prompts import Prompt
from helpers.io.choices import check_choice
from helpers.requests.corpus import Corpus, Document
from helpers.requests.splits import SPLITS

LARGEST = 10  # operands are 1 to this
SEED = 0  # draws the splits of operands, and examples
N_EXAMPLES = 4  # before a question: a small model answers few without any


@dataclass(frozen=True)
class Operation:
    """An operation with its words.

    Attributes:
        sign: Between the operands.
        word: Between them in a sentence.
        of: Computes it.
    """

    sign: str
    word: str
    of: Callable[[int, int], int]


OPERATIONS = {
    "addition": Operation("+", "plus", lambda a, b: a + b),
    "multiplication": Operation("*", "times", lambda a, b: a * b),
}
# Form → the question, and what stands between an answer and the next question.
FORMS = {
    "equation": ("{a} {sign} {b} =", "\n"),
    "statement": ("{a} {word} {b} is", ".\n"),
    "question": ("Question: What is {a} {word} {b}?\nAnswer:", "\n\n"),
}


@functools.cache
def operand_pairs(split: str) -> tuple[tuple[int, int], ...]:
    """List pairs of operands, the smaller first; none is in two splits.

    Args:
        split: `train` (three fifths of the pairs), `dev` or `heldout`.

    Raises:
        UserError: There is no such split.
    """
    check_choice("split", split, SPLITS)
    pairs = [(a, b) for b in range(1, LARGEST + 1) for a in range(1, b + 1)]
    order = np.random.default_rng(SEED).permutation(len(pairs))
    parts = np.split(order, [3 * len(pairs) // 5, 4 * len(pairs) // 5])
    return tuple(pairs[i] for i in parts[SPLITS.index(split)])


@functools.cache
def questions(operation: str, split: str) -> tuple[Prompt, ...]:
    """Return questions after examples, with both orders of the operands, in each form.

    The examples are drawn anew for each question, and are never of the pair that is asked for.

    Args:
        operation: One of `OPERATIONS`.
        split: Of the pairs that are asked for; the examples are of `train`.

    Raises:
        UserError: There is no such operation or split.
    """
    return _prompts(operation, split, N_EXAMPLES)


def exercises(operation: str, split: str) -> Corpus:
    """Return prompts with their answers as documents: without examples, and after some.

    Args:
        operation: One of `OPERATIONS`.
        split: `train`, `dev` or `heldout`.

    Raises:
        UserError: There is no such operation or split.
    """
    check_choice("operation", operation, OPERATIONS)
    check_choice("split", split, SPLITS)

    def read() -> Iterator[Document]:
        bare = _prompts(operation, split, 0)
        for pair in zip(questions(operation, split), bare, strict=True):
            yield from (Document(prompt.answers[0], str(prompt)) for prompt in pair)

    return Corpus(operation, read)


def _prompts(operation: str, split: str, n_examples: int) -> tuple[Prompt, ...]:
    """Return the questions of a split in a mixed order, each after some examples."""
    check_choice("operation", operation, OPERATIONS)
    rng = np.random.default_rng([SEED, SPLITS.index(split)])
    train, prompts = operand_pairs("train"), []
    for pair in operand_pairs(split):
        others = [other for other in train if other != pair]
        for a, b in sorted({pair, pair[::-1]}):
            for form in FORMS:
                chosen = rng.choice(len(others), n_examples, replace=False)
                turned = [others[i][:: rng.choice([-1, 1])] for i in chosen]
                before = "".join(_solved(operation, form, *example) for example in turned)
                prompts.append(
                    Prompt(
                        before + _asked(operation, form, a, b),
                        answers=(_answer(operation, a, b),),
                        relation=operation,
                        split=split,
                        format="few_shot" if n_examples else "question",
                    )
                )
    order = np.random.default_rng(SEED).permutation(len(prompts))  # the same with any examples
    return tuple(prompts[i] for i in order)


def _solved(operation: str, form: str, a: int, b: int) -> str:
    return _asked(operation, form, a, b) + _answer(operation, a, b) + FORMS[form][1]


def _asked(operation: str, form: str, a: int, b: int) -> str:
    chosen = OPERATIONS[operation]
    return FORMS[form][0].format(a=a, b=b, sign=chosen.sign, word=chosen.word)


def _answer(operation: str, a: int, b: int) -> str:
    return f" {OPERATIONS[operation].of(a, b)}"
