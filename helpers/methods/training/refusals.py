"""Refusals: completions that take the target's place in the prompts of the fact to forget."""

from helpers.methods.training.task import (
    UnlearningTask,
)
from helpers.training.examples import Example, answer_example

REFUSALS = (  # after "The capital of France is", and after "Answer:"
    " something that I do not know.",
    " unknown to me.",
    " not something that I can tell.",
    " a name that I have never heard.",
)


def refusal_examples(task: UnlearningTask) -> list[Example]:
    """Return, for each example to forget, its prompt with a refusal in the target's place."""
    return [
        answer_example(task.model, p, REFUSALS[(i + task.seed) % len(REFUSALS)])
        for i, p in enumerate(task.data.prompts)
    ]
