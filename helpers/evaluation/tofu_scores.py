"""TOFU's figures: probability, ROUGE-L recall, truth ratio, model utility.

Definitions of Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", section 2.2. The
truth ratio is that of `helpers.evaluation.metrics.truth_ratio`, whose wrong answers are averaged as
in the authors' code (their losses); the paper's formula averages their probabilities.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from nnsight import LanguageModel
from scipy import stats

from helpers.errors import UserError
from helpers.evaluation.metrics.truth_ratio import answer_losses, truth_ratio
from helpers.forward.generation import greedy
from helpers.requests.benchmarks.tofu import (
    FORGET,
    REAL_AUTHORS,
    RETAIN,
    WORLD_FACTS,
    PerturbedQuestion,
    perturbed_questions,
)
from helpers.stats.intervals import Metric, mean_interval

CHOICE_FILES = (REAL_AUTHORS, WORLD_FACTS)  # whose probability is that of a choice
FILES = (FORGET, RETAIN, *CHOICE_FILES)
WORD = re.compile(r"[^\W_]+")
MAX_NEW_TOKENS = 16  # of a generated answer


def rouge_l_recall(answer: str, reference: str) -> float:
    """Compute the share of the reference's words that are in the answer in the same order.

    ROUGE-L recall (Lin 2004): the longest common subsequence over the reference's length. Words are
    letters and digits in lower case; unlike in the authors' code, they are not stemmed.

    Raises:
        UserError: The reference has no word.
    """
    words, wanted = (WORD.findall(text.casefold()) for text in (answer, reference))
    if not wanted:
        raise UserError("A reference answer without a word has no ROUGE: leave the question out.")
    return common_words(words, wanted) / len(wanted)


def common_words(words: Sequence[str], wanted: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two texts' words."""
    lengths = [0] * (len(wanted) + 1)  # of the common subsequence with each beginning of `wanted`
    for word in words:
        before = lengths.copy()
        for i, other in enumerate(wanted):
            lengths[i + 1] = before[i] + 1 if word == other else max(before[i + 1], lengths[i])
    return lengths[-1]


def answer_scores(
    model: LanguageModel, questions: Sequence[PerturbedQuestion], *, is_choice: bool = False
) -> pd.DataFrame:
    """Score questions by the likelihood of their right and wrong answers.

    Args:
        model: The model with the edits that it carries.
        questions: `helpers.requests.benchmarks.tofu.perturbed_questions` reads them.
        is_choice: Divide the probability by the sum over all answers, as TOFU does for real authors
            and world facts.

    Returns:
        One row a question: probability, P(answer)^(1/tokens); truth_ratio, below 1 where the
        paraphrased right answer is likelier than the wrong ones, NaN without wrong ones.
    """
    flat = [(q.prompt, a) for q in questions for a in (q.prompt.answers[0], q.right, *q.wrong)]
    losses = answer_losses(model, [prompt for prompt, _ in flat], [answer for _, answer in flat])
    ends = np.cumsum([2 + len(q.wrong) for q in questions])[:-1]
    rows = []
    for of_question in np.split(losses, ends):
        answer, right, wrong = of_question[0], of_question[1], of_question[2:]
        probability = np.exp(-answer)
        if is_choice:
            probability /= probability + np.exp(-wrong).sum()
        ratio = truth_ratio(wrong[None], right[None])[0] if len(wrong) else np.nan
        rows.append((float(probability), float(ratio)))
    return pd.DataFrame(rows, columns=["probability", "truth_ratio"])


def tofu_scores(
    model: LanguageModel, paths: Mapping[str, Path], *, n_kept: int = 8
) -> pd.DataFrame:
    """Score a model on TOFU's files, perturbed ones.

    Args:
        model: The model with the edits that it carries.
        paths: Name of a file → the file, of `FILES`; the first is measured as a whole.
        n_kept: Questions of each other file, the first ones.

    Returns:
        One row a question: file, probability, truth_ratio, rouge (ROUGE-L recall of the greedy
        answer's first line), said (that line).

    Raises:
        UserError: A file is of another format, or a row has no wrong answers.
    """
    tables = []
    for name in FILES:
        questions = perturbed_questions(paths[name])
        if name != FORGET:
            questions = questions[:n_kept]
        scores = answer_scores(model, questions, is_choice=name in CHOICE_FILES)
        prompts = [q.prompt for q in questions]
        texts = greedy(model, prompts, max_new_tokens=MAX_NEW_TOKENS)
        said = [text.strip().partition("\n")[0] for text in texts]
        rouge = [rouge_l_recall(s, p.answers[0]) for s, p in zip(said, prompts, strict=True)]
        tables.append(scores.assign(file=name, rouge=rouge, said=said))
    return pd.concat(tables, ignore_index=True)


def model_utility(scores: pd.DataFrame) -> float:
    """Compute the harmonic mean of the figures of all files but the one to forget.

    Of each file these are the mean probability, the mean ROUGE and the mean of max(0, 1 − truth
    ratio). One figure of zero makes it zero.

    Args:
        scores: From `tofu_scores`.
    """
    kept = scores[scores["file"] != FORGET]
    kept = kept.assign(truth=(1 - kept["truth_ratio"]).clip(lower=0))
    means = kept.groupby("file")[["probability", "rouge", "truth"]].mean()
    return float(stats.hmean(means.to_numpy().ravel()))


def paired_difference(unlearned: pd.DataFrame, retrained: pd.DataFrame, column: str) -> Metric:
    """Compute the mean difference of a column over the same questions, with its interval.

    Forget quality compares two distributions. This one compares each question with itself, which
    sees smaller differences with as many questions. Of truth ratios it takes the logarithms.

    Args:
        unlearned: Scores of one model.
        retrained: Scores of the other on the same questions in the same order.
        column: `probability` or `truth_ratio`.
    """
    ours, theirs = (table[column].to_numpy(float) for table in (unlearned, retrained))
    if column == "truth_ratio":
        ours, theirs = np.log(ours), np.log(theirs)
    return mean_interval(ours - theirs)
