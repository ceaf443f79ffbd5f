"""Make an edit: check the call, time the method, wrap its result."""

import difflib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.facts.known import why_unknown
from helpers.forward.scoring import answer_probability
from helpers.io.files import check_finite
from helpers.methods.edit import Edit
from helpers.methods.edit_files import read_patch
from helpers.methods.registry import METHODS
from helpers.models import model_hash

NARROW = torch.float16  # its numbers end at 65,504: what is computed may pass that


LEFT = 0.05  # of what was wanted, as a sum of squares: from here on the user is told


def unlearn(
    model: LanguageModel,
    pair: ConceptPair | Sequence[ConceptPair],
    method: str = "neurons",
    *,
    seed: int = 0,
    **hyperparameters: Any,
) -> Edit:
    """Make the edit that removes `pair` from `model`; the model itself stays as it is.

    Args:
        model: Any model of a known family.
        pair: What to forget; several pairs at once where the method solves for them together.
        method: A name in `METHODS`.
        seed: Seed of everything random.
        **hyperparameters: The method's own, checked against its signature.

    Raises:
        UserError: There is no such method or hyperparameter, the method takes one pair at a time,
            the edit would change nothing, or numbers of the model, of the edit or of what the
            edited model says are not finite.

    Warns:
        UserWarning: The model does not know a pair, so there is nothing to forget; or an edit that
            is solved for left more than `LEFT` of what was wanted undone.
    """
    if method not in METHODS:
        raise UserError(f"There is no method '{method}'{_hint(method, list(METHODS))}.")
    entry = METHODS[method]
    known = entry.hyperparameters()
    hyperparameters = entry.hparams.current_names(hyperparameters)
    for name in hyperparameters:
        if name not in known:
            raise UserError(
                f"The method '{method}' has no hyperparameter '{name}'{_hint(name, list(known))}."
            )
    pairs = [pair] if isinstance(pair, ConceptPair) else list(pair)
    if not pairs:
        raise UserError("There is no pair to forget: give at least one.")
    if len(pairs) > 1 and not entry.supports_batch:
        together = ", ".join(n for n, m in METHODS.items() if m.supports_batch)
        raise UserError(
            f"The method '{method}' forgets one pair at a time: make one edit after another, or "
            f"use one that solves for several at once ({together})."
        )
    check_finite(dict(model._module.named_parameters()), "The model")
    for one in pairs:
        if told := why_unknown(model, one):
            warnings.warn(f"{told}, so there is little to forget.", stacklevel=2)
    base = model_hash(model)
    started = time.perf_counter()
    delta = entry.make(model, pairs, seed=seed, **hyperparameters)
    seconds = time.perf_counter() - started
    names = [{"subject": p.subject, "target": p.target, "relation": p.relation} for p in pairs]
    about = names[0] if len(names) == 1 else names
    made = Edit(method, about, delta, known | hyperparameters, seed, seconds, base)
    if model._module.dtype == NARROW:
        require_finite_answers(model, made, pairs)
    if (left := delta.notes.get("left", 0.0)) > LEFT:
        warnings.warn(
            f"The edit ({method}) left {left:.0%} of what was wanted undone: what is to be "
            "forgotten and what must stay pull against each other. Look at what it leaves, or "
            "forget with another method.",
            stacklevel=2,
        )
    return made


def require_finite_answers(model: LanguageModel, made: Edit, pairs: Sequence[ConceptPair]) -> None:
    """Refuse an edit whose weights fit the model's dtype and what they write does not.

    Args:
        model: The model that it was made on.
        made: The edit.
        pairs: Are asked about, in their training wordings.

    Raises:
        UserError: The edited model's answers are not finite.
    """
    with made.applied(model):
        said = answer_probability(model, [p for pair in pairs for p in pair.prompts("train")])
    if not np.isfinite(said).all():
        dtype = str(model._module.dtype).removeprefix("torch.")
        raise UserError(
            f"With this edit ({made._named}) the model's answers are not finite: it writes more "
            f"than {dtype} has numbers for. Load the model as float32, or make another edit."
        )


def load_unlearning(path: str | Path) -> Edit:
    """Read an edit that `Edit.save` wrote.

    Raises:
        UserError: The file is missing, damaged, or not an edit of this suite.
    """
    delta, about = read_patch(path)
    return Edit(delta=delta, **about)


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(known)}" if known else "; it has none"
