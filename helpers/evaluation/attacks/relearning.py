"""Fine-tune the edited model a little: does the fact come back faster than a new one is learned?

Knowledge that is only hidden returns after a few steps, even on text that doesn't hold it (Lynch et
al. 2024, "Eight Methods to Evaluate Robust Unlearning in LLMs"; Hu et al. 2025, "Unlearning or
Obfuscating?"). But a training set that holds the fact simply teaches it, so each curve stands
beside that of a fact which the model never knew, taught in the same way (`control_facts`).
"""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.attacks.registry import AttackNotApplicableError, attack, curve
from helpers.evaluation.eval_prompts import known_neighbours
from helpers.facts import ConceptPair, Prompt
from helpers.facts.corpus import python_docs_tokens
from helpers.forward.scoring import answer_probability
from helpers.methods import base_model
from helpers.methods.snapshots import preserved_parameters
from helpers.training.examples import Batch, answer_example, collate, mean_loss, text_examples
from helpers.training.loop import DivergedError, train

STEPS = (5, 10, 20, 40)
BATCH = 8
LR = 1e-5
N_FORGOTTEN = 2  # prompts of the forgotten fact in every batch of "forgotten"
TEXT_LENGTH = 24  # tokens of a stretch of unrelated text


@attack("relearning_unrelated", budget="steps", trains=True, pooled=True)
def relearning_unrelated(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, steps: Sequence[int] = STEPS
) -> pd.DataFrame:
    """Fine-tune on text about something else: Python's documentation."""
    texts = text_examples(python_docs_tokens(model.tokenizer, seq_len=TEXT_LENGTH))

    def batch(step: int) -> Batch:
        return collate(texts, np.random.default_rng([seed, step]).integers(len(texts), size=BATCH))

    return relearned(model, pair, batch, steps=steps)


@attack("relearning_neighbours", budget="steps", trains=True, pooled=True)
def relearning_neighbours(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, steps: Sequence[int] = STEPS
) -> pd.DataFrame:
    """Fine-tune on the same relation's facts about other subjects that the model knows."""
    near = _related(model, pair, seed)
    return relearned(model, pair, _mixed(model, near, [], seed), steps=steps)


@attack("relearning_forgotten", budget="steps", trains=True, pooled=True)
def relearning_forgotten(
    model: LanguageModel, pair: ConceptPair, *, seed: int = 0, steps: Sequence[int] = STEPS
) -> pd.DataFrame:
    """Fine-tune on two of the forgotten fact's own training prompts, among neighbours."""
    ways = [p for p in pair.prompts("train") if p.format == "completion"] or pair.prompts("train")
    order = np.random.default_rng(seed).permutation(len(ways))[:N_FORGOTTEN]
    try:
        near = _related(model, pair, seed)
    except AttackNotApplicableError:
        near = []
    return relearned(model, pair, _mixed(model, near, [ways[i] for i in order], seed), steps=steps)


def relearned(
    model: LanguageModel,
    pair: ConceptPair,
    batch: Callable[[int], Batch],
    *,
    steps: Sequence[int] = STEPS,
    lr: float = LR,
    split: str = "heldout",
) -> pd.DataFrame:
    """P(target) on paraphrases after so many steps of fine-tuning the model as it is.

    All parameters are trained by AdamW; the model is restored bit by bit. A training that diverges
    (of a model whose answers are not finite, say) has no scores from there on: NaN.

    Args:
        model: The model, with its edits.
        pair: What is asked.
        batch: From the step (0, 1, ...) to what is trained on.
        steps: Where the curve is read, besides 0.
        lr: Learning rate.
        split: Whose templates are asked.

    Raises:
        UserError: Steps are not positive.
    """
    if not steps or min(steps) < 1:
        raise UserError(f"steps is {tuple(steps)}: give the numbers of steps, from 1 up.")
    prompts, module = pair.prompts(split), model._module
    found = {0: answer_probability(model, prompts)}

    def read(step: int, loss: float) -> None:
        if step in steps:
            found[step] = answer_probability(model, prompts)

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
            on_step=read,
        )
    for step in steps:
        found.setdefault(step, np.full(len(prompts), np.nan))
    return curve(found)


def _mixed(
    model: LanguageModel, near: Sequence[Prompt], own: Sequence[Prompt], seed: int
) -> Callable[[int], Batch]:
    """Batches of `BATCH` prompts: all of `own`, the rest drawn from `near`."""

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        drawn = rng.permutation(len(near))[: BATCH - len(own)]
        prompts = [*own, *(near[i] for i in drawn)]
        return collate([answer_example(model, p, p.answers[0]) for p in prompts])

    return batch


def _related(model: LanguageModel, pair: ConceptPair, seed: int) -> list[Prompt]:
    with base_model(model):  # which neighbours it knew before it was edited
        known = known_neighbours(model, pair, n=48, seed=seed)
    if not known:
        raise AttackNotApplicableError("The model knows no neighbour of this pair to learn from.")
    return [p for k in known for p in k.prompts("train") if p.format == "completion"]
