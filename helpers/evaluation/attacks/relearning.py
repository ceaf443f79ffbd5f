"""Fine-tune the edited model a little: does the fact come back faster than a new one is learned?

Knowledge that is only hidden returns after a few steps, even from text without it (Lynch et al.
2024, "Eight Methods to Evaluate Robust Unlearning in LLMs"; Hu et al. 2025, "Unlearning or
Obfuscating?"). But a training set with the fact simply trains it. So each curve is compared with
that of control facts, trained in the same way (`control_facts`).

How much returns depends on the learning rate, and the rate that recovers most is another for every
edit (Deeb & Roger 2025, "Do Unlearning Methods Remove Information from Language Model Weights?").
So the attack is run at several. The learning rate is its budget; a prompt's score at a rate is the
mean over checkpoints.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from nnsight import LanguageModel

from helpers.evaluation.attacks.registry import (
    AttackKind,
    AttackNotApplicableError,
    attack,
    require_budgets,
    score_table,
)
from helpers.evaluation.eval_prompts import known_neighbours
from helpers.facts import ConceptPair, Prompt
from helpers.facts.corpus import python_docs_tokens
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.methods.snapshots import preserved_parameters
from helpers.models import torch_module
from helpers.training.examples import Batch, answer_example, collate, mean_loss, text_examples
from helpers.training.loop import DivergedError, train

STEPS = (5, 10, 20)
# Chosen on a development fact that is hidden in the last layer: at 3e-4 and 5 steps half of it is
# back, and nothing of a control fact is.
RATES = (1e-4, 3e-4, 1e-3)
BATCH = 8
RATE = "learning rate"
N_FORGOTTEN = 2  # prompts of the forgotten fact in every batch of `relearning_forgotten`
TEXT_LENGTH = 24  # tokens of an unrelated text


@attack(
    "relearning_unrelated",
    budget=RATE,
    fine_tunes=True,
    kind=AttackKind.WEIGHTS,
)
def relearning_unrelated(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    rates: Sequence[float] = RATES,
) -> pd.DataFrame:
    """Fine-tune on unrelated text: Python's documentation."""
    texts = text_examples(python_docs_tokens(model.tokenizer, seq_len=TEXT_LENGTH))

    def batch(step: int) -> Batch:
        return collate(texts, np.random.default_rng([seed, step]).integers(len(texts), size=BATCH))

    heldout = pair.prompts("heldout")
    return score_table(mean_over_steps(model, heldout, batch, steps, rates))


@attack(
    "relearning_neighbours",
    budget=RATE,
    fine_tunes=True,
    kind=AttackKind.WEIGHTS,
)
def relearning_neighbours(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    rates: Sequence[float] = RATES,
) -> pd.DataFrame:
    """Fine-tune on known facts of the same relation about other subjects."""
    neighbours = _neighbour_prompts(model, pair, seed)
    heldout, batch = pair.prompts("heldout"), _batches(model, neighbours, [], seed)
    return score_table(mean_over_steps(model, heldout, batch, steps, rates))


@attack(
    "relearning_forgotten",
    budget=RATE,
    fine_tunes=True,
    kind=AttackKind.WEIGHTS,
)
def relearning_forgotten(
    model: LanguageModel,
    pair: ConceptPair,
    *,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    rates: Sequence[float] = RATES,
) -> pd.DataFrame:
    """Fine-tune on two training prompts of the forgotten fact, among neighbours."""
    statements = pair.statements("train") or pair.prompts("train")
    order = np.random.default_rng(seed).permutation(len(statements))[:N_FORGOTTEN]
    forgotten = [statements[i] for i in order]
    try:
        neighbours = _neighbour_prompts(model, pair, seed)
    except AttackNotApplicableError:
        neighbours = []
    batch = _batches(model, neighbours, forgotten, seed)
    heldout = pair.prompts("heldout")
    return score_table(mean_over_steps(model, heldout, batch, steps, rates))


def mean_over_steps(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    batch: Callable[[int], Batch],
    steps: Sequence[int],
    rates: Sequence[float],
) -> dict[float, Float[np.ndarray, " n"]]:
    """Fine-tune at each learning rate; average each prompt's score over the checkpoints.

    Args:
        model: The model, with its edits; it is restored bit by bit.
        prompts: The prompts that are scored.
        batch: Step (0, 1, ...) → its training batch.
        steps: Checkpoints.
        rates: Learning rates.

    Returns:
        Rate → the mean P(target) of each prompt.

    Raises:
        UserError: There are no steps or rates, or one is not positive.
    """
    require_budgets("rates", rates)
    scores = {}
    for rate in rates:
        curve = relearned(model, prompts, batch, steps=steps, lr=rate)
        # NaN, from where training diverged, stays NaN: it is no zero.
        scores[rate] = np.mean([curve[step] for step in steps], axis=0)
    return scores


def relearned(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    batch: Callable[[int], Batch],
    *,
    steps: Sequence[int],
    lr: float,
) -> dict[int, Float[np.ndarray, " n"]]:
    """Compute P(target) of prompts after some numbers of steps of fine-tuning.

    AdamW trains all parameters; the model is restored bit by bit. Where training diverges (for
    example because the answers are not finite), the scores from there on are NaN.

    Args:
        model: The model, with its edits.
        prompts: The prompts that are scored.
        batch: Step (0, 1, ...) → its training batch.
        steps: Steps after which the prompts are scored.
        lr: Learning rate.

    Returns:
        Step → P(target) of each prompt.

    Raises:
        UserError: There are no steps, or one is not positive.
    """
    require_budgets("steps", steps)
    scores = fine_tuned(
        model, batch, lambda: answer_probability(model, prompts), steps=steps, lr=lr
    )
    return {step: scores.get(step, np.full(len(prompts), np.nan)) for step in steps}


def fine_tuned(
    model: LanguageModel,
    batch: Callable[[int], Batch],
    measure: Callable[[], Any],
    *,
    steps: Sequence[int],
    lr: float,
) -> dict[int, Any]:
    """Fine-tune all parameters by AdamW, measure at some steps, and restore the model bit by bit.

    Args:
        model: The model, with its edits.
        batch: Step (0, 1, ...) → its training batch.
        measure: Measures the model as it is.
        steps: Steps after which it is measured.
        lr: Learning rate.

    Returns:
        Step → what was measured; without the steps from where the training diverged.
    """
    module = torch_module(model)
    measured = {}

    def measure_after(step: int, loss: float) -> None:
        if step in steps:
            measured[step] = measure()

    with (
        preserved_parameters(module, [n for n, _ in module.named_parameters()]),
        contextlib.suppress(DivergedError),
    ):
        train(
            module,
            lambda module, batch: mean_loss(model, batch),
            batch,
            steps=max(steps),
            lr=lr,
            on_step=measure_after,
        )
    return measured


def _batches(
    model: LanguageModel, neighbours: Sequence[Prompt], forgotten: Sequence[Prompt], seed: int
) -> Callable[[int], Batch]:
    """Make batches of `BATCH` prompts: all forgotten ones, the rest drawn from neighbours'."""

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        order = rng.permutation(len(neighbours))[: BATCH - len(forgotten)]
        prompts = [*forgotten, *(neighbours[i] for i in order)]
        return collate([answer_example(model, p, p.answers[0]) for p in prompts])

    return batch


def _neighbour_prompts(model: LanguageModel, pair: ConceptPair, seed: int) -> list[Prompt]:
    with base_model(model):  # neighbours that the original knows
        known = known_neighbours(model, pair, n=48, seed=seed)
    if not known:
        raise AttackNotApplicableError("The model knows no neighbour of this pair to learn from.")
    return [p for k in known for p in k.statements("train")]
