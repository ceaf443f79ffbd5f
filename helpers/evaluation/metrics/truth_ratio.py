"""TOFU's two metrics: does the model prefer the truth, and can one tell that it was made to forget?

Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs".
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from nnsight import LanguageModel
from scipy import stats

from helpers.errors import UserError
from helpers.facts import Prompt
from helpers.forward.prompts import encode_pair
from helpers.forward.scoring import answer_logprobs

AVERAGES = ("arithmetic", "geometric")


def truth_ratio(
    wrong: Float[np.ndarray, "n m"], right: Float[np.ndarray, " n"], *, average: str = "geometric"
) -> Float[np.ndarray, " n"]:
    """R = p(wrong answers) / p(right answer), each length-normalised, p = exp(−loss).

    From 0 (only the truth is likely) over 1 (no preference) upwards (the truth is avoided). TOFU
    uses two averages over the wrong answers: its model utility averages exp(−loss)
    (`arithmetic`), its forget quality averages losses first (`geometric`); the first is never
    smaller.

    Args:
        wrong: Mean token NLL of each question's wrong answers, nats.
        right: Mean token NLL of each question's right answer.
        average: One of `AVERAGES`.

    Raises:
        UserError: There is no such average, or a question has no wrong answer.
    """
    wrong, right = np.atleast_2d(np.asarray(wrong, float)), np.asarray(right, float)
    if average not in AVERAGES:
        raise UserError(f"There is no average '{average}'; choose from {', '.join(AVERAGES)}.")
    if not wrong.shape[1]:
        raise UserError("A truth ratio needs at least one wrong answer to each question.")
    if average == "geometric":
        return np.exp(right - wrong.mean(1))
    return np.exp(-wrong).mean(1) * np.exp(right)


def truth_utility(ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """max(0, 1 − R): TOFU's score of retained knowledge, from 0 to 1 (better)."""
    return np.maximum(0.0, 1.0 - np.asarray(ratio, float))


def forget_quality(unlearned: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]) -> float:
    """p-value of the two-sample Kolmogorov–Smirnov test between truth ratios.

    From 0 (told apart from a model that never learned it) to 1. It depends on the number of
    questions: with few, everything passes; state n and m beside it.

    Args:
        unlearned: Truth ratios of the unlearned model on what it was to forget.
        reference: The same of a model that never saw it.

    Raises:
        UserError: There is no reference.
    """
    if not len(reference) or not len(unlearned):
        raise UserError(
            "Forget quality compares with a model that never learned the facts: give its truth "
            "ratios too."
        )
    return float(stats.ks_2samp(unlearned, reference).pvalue)


def answer_losses(
    model: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """Mean NLL of each answer's tokens, nats a token."""
    lengths = []
    for prompt, answer in zip(prompts, answers, strict=True):
        start, ids = encode_pair(model, prompt, answer)
        lengths.append(len(ids) - start)
    return -answer_logprobs(model, prompts, answers) / np.array(lengths)


def truth_ratios(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    wrong: Sequence[str],
    *,
    average: str = "geometric",
) -> Float[np.ndarray, " n"]:
    """`truth_ratio` of prompts with the same wrong answers for all.

    Args:
        model: Any causal model.
        prompts: With their right answers, of which the first counts.
        wrong: With their leading space.
        average: As in `truth_ratio`.
    """
    flat = [(p, a) for p in prompts for a in (p.answers[0], *wrong)]
    found = answer_losses(model, [p for p, _ in flat], [a for _, a in flat])
    found = found.reshape(len(prompts), 1 + len(wrong))
    return truth_ratio(found[:, 1:], found[:, 0], average=average)
