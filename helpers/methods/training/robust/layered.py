"""Layered unlearning: forget a growing part of the prompts while the rest is still retained."""

import math
from dataclasses import replace

import numpy as np

from helpers.errors import UserError
from helpers.methods.training.data import ForgetRetainData
from helpers.methods.training.task import UnlearningTask


def layered(task: UnlearningTask) -> list[UnlearningTask]:
    """Return k tasks: stage i forgets folds 1 to i and retains folds i + 1 to k.

    Layered Unlearning (Qian et al. 2025, "Layered Unlearning for Adversarial Relearning"). Each
    stage has to inhibit its folds by something that the later ones do not share, so relearning
    some prompts should not bring back the others. The last stage forgets everything. All answers
    of a prompt are in one fold. Answers that the model does not know are not retained.

    Args:
        task: The whole task.

    Raises:
        UserError: There are fewer prompts or steps than folds.
    """
    n_folds, data = task.config.layered_folds, task.data
    folds = fold_of_examples(data, n_folds, seed=task.seed)
    known = task.reference_sums(data.forget) <= -math.log(task.config.min_answer_prob)
    stages = []
    for stage in range(n_folds):
        forgotten = [i for i, fold in enumerate(folds) if fold <= stage]
        retained = [i for i, fold in enumerate(folds) if fold > stage and known[i]]
        stage_data = ForgetRetainData(
            prompts=[data.prompts[i] for i in forgotten if data.prompts],
            forget=[data.forget[i] for i in forgotten],
            facts=data.facts + [data.forget[i] for i in retained],
            passages=data.passages,
        )
        stages.append(replace(task, data=stage_data))
    return stages


def fold_of_examples(data: ForgetRetainData, n_folds: int, *, seed: int) -> list[int]:
    """Draw the fold (0, 1, ...) of each example to forget, folds of equal numbers of prompts.

    Args:
        data: The examples.
        n_folds: Number of folds.
        seed: Draws the folds.

    Raises:
        UserError: There are fewer prompts than folds.
    """
    # Running text has no prompts: each of its sequences stands by itself.
    units = [str(p) for p in data.prompts] or [str(i) for i in range(len(data.forget))]
    texts = list(dict.fromkeys(units))
    if len(texts) < n_folds:
        raise UserError(
            f"There are {len(texts)} prompts to forget by: for {n_folds} folds (layered_folds) "
            "give the pair more templates, or choose fewer folds."
        )
    order = np.random.default_rng(seed).permutation(len(texts))
    folds = {texts[i]: place % n_folds for place, i in enumerate(order)}
    return [folds[unit] for unit in units]
