"""TOFU's figures under attack: other words, rounding, and fine-tuning on people who must stay.

A model that never learned a person is attacked in the same way. What the attacks find in it is what
they make of any model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.quantisation import quantised
from helpers.evaluation.attacks.relearning import fine_tuned
from helpers.evaluation.metrics.truth_ratio import forget_quality
from helpers.evaluation.tofu_scores import answer_scores, paired_difference
from helpers.io.choices import check_choice
from helpers.requests import Corpus
from helpers.requests.benchmarks.tofu import FORGET, PerturbedQuestion, perturbed_questions
from helpers.stats.intervals import Metric
from helpers.training.examples import Batch, collate

NO_ATTACK = "none"
TOFU_ATTACKS = (NO_ATTACK, "other words", "int8", "int4", "relearning")
BATCH_SIZE = 8  # examples in a step of fine-tuning
LEARNING_RATE = 3e-4
MAX_TOKENS = 100_000  # of the people who must stay
PASSES = 0.05  # forget quality above which the test does not tell the models apart, as in TOFU


def tofu_attacks(
    model: LanguageModel,
    forget: Path,
    retain: Corpus,
    *,
    attacks: Sequence[str] = TOFU_ATTACKS,
    steps: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Score the questions to forget as they are and under each attack; restore the model.

    `other words` asks by the paraphrased questions. `relearning` trains all parameters on people
    who must stay, so that nothing of what comes back was taught.

    Args:
        model: The model with the edits that it carries.
        forget: The perturbed file to forget.
        retain: Questions and answers about people who must stay.
        attacks: Names of `TOFU_ATTACKS`.
        steps: Steps of fine-tuning.
        seed: Draws its batches.

    Returns:
        One row a question and attack: attack, question (its number), probability, truth_ratio. An
        attack in which the training diverges has no rows.

    Raises:
        UserError: There is no such attack, or the file is of another format.
    """
    questions = perturbed_questions(forget)
    tables = {}
    for name in attacks:
        check_choice("attack", name, TOFU_ATTACKS)
        if name == NO_ATTACK:
            tables[name] = answer_scores(model, questions)
        elif name == "other words":
            tables[name] = answer_scores(model, perturbed_questions(forget, paraphrased=True))
        elif name == "relearning":
            table = _relearned(model, questions, retain, steps, seed)
            if table is not None:
                tables[name] = table
        else:
            with quantised(model, name):
                tables[name] = answer_scores(model, questions)
    return pd.concat(
        [table.assign(attack=name, question=range(len(table))) for name, table in tables.items()],
        ignore_index=True,
    )


def _relearned(
    model: LanguageModel,
    questions: Sequence[PerturbedQuestion],
    retain: Corpus,
    steps: int,
    seed: int,
) -> pd.DataFrame | None:
    """Return the scores after fine-tuning on people who must stay; None if it diverges."""
    learned = retain.examples(model, n_tokens=MAX_TOKENS)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        return collate(learned, rng.integers(len(learned), size=BATCH_SIZE))

    def measure() -> pd.DataFrame:
        return answer_scores(model, questions)

    measured = fine_tuned(model, batch, measure, steps=[steps], lr=LEARNING_RATE)
    return measured.get(steps)


def without_attack(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Collect the questions to forget of several models' scores, as rows of no attack.

    Args:
        scores: Model → its scores, from `tofu_scores`, or from `answer_scores` on the file to
            forget.

    Returns:
        Their rows with the columns model, attack and question (its number).
    """
    tables = []
    for model, table in scores.items():
        own = table[table["file"] == FORGET] if "file" in table else table
        tables.append(own.assign(model=model, attack=NO_ATTACK, question=range(len(own))))
    return pd.concat(tables, ignore_index=True)


def against_retrained(scores: pd.DataFrame, retrained: str) -> pd.DataFrame:
    """Compare each model with the retrained one under the same attack.

    Args:
        scores: Rows of `tofu_attacks` of several models, with a column model.
        retrained: Name of the retrained model.

    Returns:
        One row a model and attack: model, attack, n (questions), probability (mean),
        forget_quality (p-value against the retrained model), and the mean paired differences,
        `Metric`s: more_probable (of the probability) and log_ratio (of the truth ratio's
        logarithm).
    """
    rows = []
    for (model, attack), own in scores.groupby(["model", "attack"], sort=False):
        is_reference = (scores["model"] == retrained) & (scores["attack"] == attack)
        reference = scores[is_reference].sort_values("question")
        own = own.sort_values("question")
        if not len(reference):
            continue
        rows.append(
            {
                "model": model,
                "attack": attack,
                "n": len(own),
                "probability": float(own["probability"].mean()),
                "forget_quality": forget_quality(
                    own["truth_ratio"].to_numpy(), reference["truth_ratio"].to_numpy()
                ),
                "more_probable": paired_difference(own, reference, "probability"),
                "log_ratio": paired_difference(own, reference, "truth_ratio"),
            }
        )
    return pd.DataFrame(rows)


def worst_attack(table: pd.DataFrame, model: str) -> tuple[str, Metric]:
    """Return the attack under which a model says the answers most surely, and by how much.

    Args:
        table: From `against_retrained`.
        model: The model.

    Returns:
        The attack's name, and the mean difference of the probability from the retrained model's
        under the same attack.
    """
    rows = table[table["model"] == model]
    row = rows.loc[rows["more_probable"].map(lambda metric: metric.value).idxmax()]
    return str(row["attack"]), row["more_probable"]
