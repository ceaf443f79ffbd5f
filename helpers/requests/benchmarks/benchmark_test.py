"""A test of a benchmark: prompts with right answers, and the figure by which they are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from helpers.forward.prompts import Prompt

GO, STAY = "go", "stay"  # what has to become of the answers
SAID, CHOICE, TOKENS = "answer is said", "right answer is likeliest", "right tokens"
T = TypeVar("T")


@dataclass(frozen=True)
class BenchmarkTest:
    """The questions of one kind.

    Attributes:
        name: The file, or the benchmark's name of the kind.
        must: `GO` or `STAY`.
        figure: How answers are scored: a name in `helpers.evaluation.benchmark_scores.FIGURES`.
        prompts: The questions with their right answers, the main one first.
        wrong: Wrong answers of each, where the figure compares with them.
    """

    name: str
    must: str
    figure: str
    prompts: tuple[Prompt, ...]
    wrong: tuple[tuple[str, ...], ...] = ()

    def evenly(self, n: int) -> "BenchmarkTest":
        """Return the test with `n` of its questions."""
        return replace(
            self, prompts=tuple(evenly(self.prompts, n)), wrong=tuple(evenly(self.wrong, n))
        )


def evenly(values: Sequence[T], n: int) -> Sequence[T]:
    """Return `n` values at even distances, or all where there are fewer: files are in order."""
    if len(values) <= n:
        return values
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, n)]
