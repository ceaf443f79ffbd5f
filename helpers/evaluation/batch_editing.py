"""Batch against sequential editing: do edits of several facts disturb each other?"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.eval_prompts import known_neighbours
from helpers.facts import ConceptPair, Prompt
from helpers.facts.known import KNOWN_PROB
from helpers.forward.scoring import answer_probability
from helpers.methods import METHODS, Edit, unlearn

STATES = ("original", "solved together", "solved one by one", "the first undone")


def together(
    model: LanguageModel,
    pairs: Sequence[ConceptPair],
    method: str,
    *,
    split: str = "heldout",
    n_neighbours: int = 12,
    seed: int = 0,
    **hyperparameters: Any,
) -> pd.DataFrame:
    """Forget pairs jointly, and by edits fitted one by one, and undo the first of these again.

    Args:
        model: The original model.
        pairs: At least two, of one relation.
        method: One that takes several pairs (`Method.supports_batch`).
        split: The split whose templates are used.
        n_neighbours: Known subjects besides the pairs'.
        seed: Seed of everything random.
        **hyperparameters: Hyperparameters of the method.

    Returns:
        One row per state (`STATES`), group (`own`, `neighbours`, `same_subject`, `same_target`) and
        fact: state, group, fact, p (mean P(answer) over the fact's prompts), known (whether the
        original gives at least `KNOWN_PROB`), retention (p after / before), and seconds that the
        state's edits took.

    Raises:
        UserError: There are fewer than two pairs, or the method takes one at a time.
    """
    pairs = list(pairs)
    if len(pairs) < 2:
        raise UserError(f"Several facts are at least two; there are {len(pairs)} here.")
    if method not in METHODS or not METHODS[method].supports_batch:
        able = ", ".join(n for n, m in METHODS.items() if m.supports_batch)
        raise UserError(f"'{method}' does not take several pairs: choose one of {able}.")
    prompts = _prompts(model, pairs, split, n_neighbours, seed)
    joint = unlearn(model, pairs, method, seed=seed, **hyperparameters)
    single = [unlearn(model, p, method, seed=seed, **hyperparameters) for p in pairs]
    edits = dict(zip(STATES, ([], [joint], single, single[1:]), strict=True))
    tables = []
    for state, state_edits in edits.items():
        with applied(model, state_edits):
            p = answer_probability(model, [prompt for _, _, prompt in prompts])
        rows = pd.DataFrame({"group": [g for g, *_ in prompts], "fact": [f for _, f, _ in prompts]})
        rows = rows.assign(p=p).groupby(["group", "fact"], sort=False)["p"].mean().reset_index()
        tables.append(rows.assign(state=state, seconds=sum(e.seconds for e in state_edits)))
    table = pd.concat(tables, ignore_index=True)
    original_p = np.tile(tables[0]["p"].to_numpy(), len(tables))
    return table.assign(known=original_p >= KNOWN_PROB, retention=table["p"] / original_p)


@contextlib.contextmanager
def applied(model: LanguageModel, edits: Sequence[Edit]) -> Iterator[LanguageModel]:
    """Apply several edits for the length of a `with` block."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(model))
        yield model


def _prompts(
    model: LanguageModel, pairs: Sequence[ConceptPair], split: str, n_neighbours: int, seed: int
) -> list[tuple[str, str, Prompt]]:
    """List the evaluation prompts, each as (group, fact, prompt)."""
    subjects = {p.subject for p in pairs}
    n = n_neighbours + len(pairs)
    neighbours = known_neighbours(model, pairs[0], n=n, seed=seed, split=split)
    neighbours = [p for p in neighbours if p.subject not in subjects][:n_neighbours]
    groups = {
        "neighbours": neighbours,
        "same_subject": [f for p in pairs for f in p.same_subject()],
        "same_target": [f for p in pairs for f in p.same_target()],
    }
    groups = {  # a fact that one pair is to forget must not stay for another
        group: [f for f in facts if not any(p.states(f.subject, f.answers) for p in pairs)]
        for group, facts in groups.items()
    }
    forget = [("own", str(p), q) for p in pairs for q in p.prompts(split)]
    return forget + [
        (group, f"{f.relation}: {f}", q)
        for group, facts in groups.items()
        for f in facts
        for q in f.prompts(split)
        if q.format == "completion"
    ]
