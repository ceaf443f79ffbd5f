"""Attacks on a removed text or capability: rounding, and fine-tuning on text with and without it.

A model that lost a language has to learn it again. So what a few steps on that language give back
is compared with what the same steps teach the original model of a language that it never learned;
steps on unrelated text can teach nothing of it at all (Łucki et al. 2024, "An Adversarial
Perspective on Machine Unlearning for AI Safety").
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.evaluation.attacks.quantisation import quantised
from helpers.evaluation.attacks.relearning import fine_tuned
from helpers.evaluation.text_scorecard import corpus_floor
from helpers.io.choices import check_choice
from helpers.methods import Edit
from helpers.requests import TextRequest
from helpers.training.examples import Batch, Example, collate, sequence_losses

TEXT_ATTACKS = ("int8", "int4", "relearning_unrelated", "relearning_forgotten")
BATCH_SIZE, SEQ_LEN = 8, 64  # of fine-tuning
TRAIN_TOKENS = 8192  # from which the batches of fine-tuning are drawn


def text_attacks(
    model: LanguageModel,
    request: TextRequest,
    edit: Edit,
    *,
    attacks: Sequence[str] = TEXT_ATTACKS,
    steps: Sequence[int] = (5, 20),
    lr: float = 1e-4,
    n_tokens: int = 2048,
    seed: int = 0,
) -> pd.DataFrame:
    """Attack an edit, and measure the first held-out text to forget after each attack.

    Args:
        model: The original model.
        request: What was to be forgotten.
        edit: The edit that is attacked.
        attacks: Names of `TEXT_ATTACKS`.
        steps: Steps of fine-tuning after which the loss is measured.
        lr: Its learning rate.
        n_tokens: Tokens on which losses are measured.
        seed: Draws the batches of fine-tuning.

    Returns:
        One row a state: state (`original`, `edited`, `control`), attack (`none` or its name),
        steps, loss in nats a token, forgotten (share of the way from the original's loss to the
        floor; NaN for the control) and gain (loss before the fine-tuning − after). The control is
        the original model on the text that it never learned, after the same fine-tuning on that.

    Raises:
        UserError: There is no such attack.
    """
    for name in attacks:
        check_choice("attack", name, TEXT_ATTACKS)
    target = request.heldout[0].examples(model, n_tokens=n_tokens)
    original, floor = _loss(model, target), corpus_floor(model, request.heldout[0], n_tokens)
    rows = [_row("original", "none", 0, original)]
    with edit.applied(model):
        edited = _loss(model, target)
        rows.append(_row("edited", "none", 0, edited))
        for scheme in [name for name in attacks if name in ("int8", "int4")]:
            with quantised(model, scheme):
                rows.append(_row("edited", scheme, 0, _loss(model, target)))
        texts = {
            "relearning_unrelated": request.retain[0],
            "relearning_forgotten": request.forget,
        }
        for name, corpus in texts.items():
            if name in attacks:
                learned = corpus.examples(model, n_tokens=TRAIN_TOKENS, seq_len=SEQ_LEN)
                losses = _fine_tuned(model, learned, target, steps=steps, lr=lr, seed=seed)
                rows += [_row("edited", name, n, x, edited - x) for n, x in losses.items()]
    new: list[Example] = []
    if request.never_learned is not None and "relearning_forgotten" in attacks:
        new = request.never_learned.examples(model, n_tokens=2 * TRAIN_TOKENS, seq_len=SEQ_LEN)
    if len(new) > 1:  # one half is learned, the other measured
        learned, measured = new[::2], new[1::2][: max(1, n_tokens // SEQ_LEN)]
        before = _loss(model, measured)
        losses = _fine_tuned(model, learned, measured, steps=steps, lr=lr, seed=seed)
        name = "relearning_forgotten"
        rows += [_row("control", name, n, x, before - x) for n, x in losses.items()]
    table = pd.DataFrame(rows, columns=["state", "attack", "steps", "loss", "gain"])
    share = (table["loss"] - original) / (floor - original)
    return table.assign(forgotten=share.where(table["state"] != "control"))


def _row(
    state: str, attack: str, steps: int, loss: float, gain: float = float("nan")
) -> tuple[str, str, int, float, float]:
    return state, attack, steps, loss, gain


def _loss(model: LanguageModel, examples: Sequence[Example]) -> float:
    """Compute the mean token NLL of examples, averaged over them."""
    return float(sequence_losses(model, examples).mean())


def _fine_tuned(
    model: LanguageModel,
    learned: Sequence[Example],
    measured: Sequence[Example],
    *,
    steps: Sequence[int],
    lr: float,
    seed: int,
) -> dict[int, float]:
    """Return the loss after some numbers of steps on other examples; restore the model.

    From where the training diverges, losses are NaN.
    """

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        return collate(learned, rng.integers(len(learned), size=BATCH_SIZE))

    losses = fine_tuned(model, batch, lambda: _loss(model, measured), steps=steps, lr=lr)
    return {step: losses.get(step, float("nan")) for step in steps}
