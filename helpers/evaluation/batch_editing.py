"""Several facts forgotten at once: do the edits disturb each other, and can one be undone?"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.eval_prompts import KNOWN, known_neighbours
from helpers.facts import ConceptPair, Prompt
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
    """Forget pairs jointly, and by edits solved one by one, and undo the first of these again.

    Args:
        model: The original model.
        pairs: At least two, of one relation.
        method: One that takes several pairs (`Method.supports_batch`).
        split: Whose templates are asked.
        n_neighbours: Known subjects besides the pairs'.
        seed: Of everything random.
        **hyperparameters: The method's.

    Returns:
        One row per state (`STATES`), group (`own`, `neighbours`, `same_subject`, `same_target`) and
        fact: state, group, fact, p (mean P(answer) over the fact's prompts), known (whether the
        original gives at least 0.1), kept (p after / before), and seconds that the state's edits
        took.

    Raises:
        UserError: There are fewer than two pairs, or the method takes one at a time.
    """
    pairs = list(pairs)
    if len(pairs) < 2:
        raise UserError(f"Several facts are at least two; there are {len(pairs)} here.")
    if method not in METHODS or not METHODS[method].supports_batch:
        able = ", ".join(n for n, m in METHODS.items() if m.supports_batch)
        raise UserError(f"'{method}' does not take several pairs: choose one of {able}.")
    asked = _asked(model, pairs, split, n_neighbours, seed)
    joint = unlearn(model, pairs, method, seed=seed, **hyperparameters)
    each = [unlearn(model, p, method, seed=seed, **hyperparameters) for p in pairs]
    edits = dict(zip(STATES, ([], [joint], each, each[1:]), strict=True))
    found = []
    for state, some in edits.items():
        with applied(model, some):
            p = answer_probability(model, [prompt for _, _, prompt in asked])
        rows = pd.DataFrame({"group": [g for g, _, _ in asked], "fact": [f for _, f, _ in asked]})
        rows = rows.assign(p=p).groupby(["group", "fact"], sort=False)["p"].mean().reset_index()
        found.append(rows.assign(state=state, seconds=sum(e.seconds for e in some)))
    table = pd.concat(found, ignore_index=True)
    before = np.tile(found[0]["p"].to_numpy(), len(found))
    return table.assign(known=before >= KNOWN, kept=table["p"] / before)


@contextlib.contextmanager
def applied(model: LanguageModel, edits: Sequence[Edit]) -> Iterator[LanguageModel]:
    """The model with several edits, for the length of a `with` block."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(model))
        yield model


def _asked(
    model: LanguageModel, pairs: Sequence[ConceptPair], split: str, n_neighbours: int, seed: int
) -> list[tuple[str, str, Prompt]]:
    """(group, fact, prompt)."""
    own = {p.subject for p in pairs}
    near = known_neighbours(model, pairs[0], n=n_neighbours + len(pairs), seed=seed, split=split)
    near = [p for p in near if p.subject not in own][:n_neighbours]
    groups = {
        "neighbours": near,
        "same_subject": [f for p in pairs for f in p.same_subject()],
        "same_target": [f for p in pairs for f in p.same_target()],
    }
    groups = {  # what is to be forgotten of one of the pairs is not to stay for another
        group: [f for f in facts if not any(p.states(f.subject, f.answers) for p in pairs)]
        for group, facts in groups.items()
    }
    found = [("own", str(p), q) for p in pairs for q in p.prompts(split)]
    return found + [
        (group, f"{f.relation}: {f}", q)
        for group, facts in groups.items()
        for f in facts
        for q in f.prompts(split)
        if q.format == "completion"
    ]
