"""TOFU's truth ratio and forget quality.

Does the model prefer the truth, and does it differ from a model that never learned it?

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
from helpers.requests.benchmarks.tofu import PerturbedQuestion


def truth_ratio(
    wrong: Float[np.ndarray, "n m"], right: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Compute R = p(wrong answers) / p(right answer), each length-normalised, p = exp(−loss).

    R goes from 0 (only the truth is likely) over 1 (no preference) upwards (the truth is avoided).
    Losses of the wrong answers are averaged first, as in TOFU's forget quality.

    Args:
        wrong: Mean token NLL of each question's wrong answers, nats.
        right: Mean token NLL of each question's right answer.

    Raises:
        UserError: A question has no wrong answer.
    """
    wrong, right = np.atleast_2d(np.asarray(wrong, float)), np.asarray(right, float)
    if not wrong.shape[1]:
        raise UserError("A truth ratio needs at least one wrong answer to each question.")
    return np.exp(right - wrong.mean(1))


def forget_quality(unlearned: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]) -> float:
    """Compute the p-value of the two-sample Kolmogorov–Smirnov test between truth ratios.

    It goes from 0 (differs from a model that never learned the facts) to 1. It depends on the
    number of questions: with few, everything passes, so report n and m with it.

    Args:
        unlearned: Truth ratios of the unlearned model on the forgotten facts.
        reference: Truth ratios of a model that never learned them.

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
    model: LanguageModel, prompts: Sequence[Prompt | str], answers: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """Compute the mean NLL of each answer's tokens, in nats a token."""
    lengths = []
    for prompt, answer in zip(prompts, answers, strict=True):
        start, ids = encode_pair(model, prompt, answer)
        lengths.append(len(ids) - start)
    return -answer_logprobs(model, prompts, answers) / np.array(lengths)


def perturbed_truth_ratios(
    model: LanguageModel, questions: Sequence[PerturbedQuestion]
) -> Float[np.ndarray, " n"]:
    """Compute the truth ratio of each question of one of TOFU's perturbed files.

    The paraphrased answer is the right one, and each question has wrong ones of its own.

    Args:
        model: Any causal model.
        questions: `helpers.requests.benchmarks.tofu.perturbed_questions` reads them.
    """
    flat = [(q.prompt, answer) for q in questions for answer in (q.right, *q.wrong)]
    losses = answer_losses(model, [prompt for prompt, _ in flat], [answer for _, answer in flat])
    ends = np.cumsum([1 + len(q.wrong) for q in questions])[:-1]
    parts = np.split(losses, ends)
    return np.array([truth_ratio(part[None, 1:], part[:1])[0] for part in parts if len(part)])


def truth_ratios(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    wrong: Sequence[str],
) -> Float[np.ndarray, " n"]:
    """Compute the truth ratios of prompts with the same wrong answers for all.

    Args:
        model: Any causal model.
        prompts: Prompts with their right answers, of which the first counts.
        wrong: Wrong answers, with their leading space.
    """
    flat = [(p, a) for p in prompts for a in (p.answers[0], *wrong)]
    losses = answer_losses(model, [p for p, _ in flat], [a for _, a in flat])
    losses = losses.reshape(len(prompts), 1 + len(wrong))
    return truth_ratio(losses[:, 1:], losses[:, 0])
