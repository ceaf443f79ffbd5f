"""Make an edit, check the call and the result, and load edits that were saved."""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.facts.known import why_unknown
from helpers.forward.scoring import answer_probability
from helpers.io.choices import suggestion
from helpers.io.files import check_finite
from helpers.methods.edit import Edit
from helpers.methods.edit_files import read_patch
from helpers.methods.registry import METHODS, Method
from helpers.models import model_hash, torch_module

DEFAULT_METHOD = "gated_neuron"
MAX_UNSOLVED = 0.05  # share of the residual's sum of squares that an edit may leave unmentioned


def unlearn(
    model: LanguageModel,
    pair: ConceptPair | Sequence[ConceptPair],
    method: str = DEFAULT_METHOD,
    *,
    seed: int = 0,
    **hyperparameters: Any,
) -> Edit:
    """Make the edit that removes `pair` from `model`; the model itself stays as it is.

    Args:
        model: Any model of a known family.
        pair: What to forget; several pairs at once where the method solves for them together.
        method: A name in `METHODS`. The default is the proposed method in the form that needs no
            SAE.
        seed: Seed of everything random.
        **hyperparameters: Hyperparameters of the method that differ from its defaults.

    Raises:
        UserError: There is no such method or hyperparameter, the method takes one pair at a time,
            the edit would change nothing, or numbers of the model, of the edit or of the edited
            model's predictions are not finite.

    Warns:
        UserWarning: The model does not know a pair, so there is nothing to forget; or an edit that
            is fitted left more than `MAX_UNSOLVED` of the targets unreached.
    """
    if method not in METHODS:
        raise UserError(f"There is no method '{method}'{suggestion(method, METHODS)}.")
    entry = METHODS[method]
    pairs = [pair] if isinstance(pair, ConceptPair) else list(pair)
    hyperparameters = _checked_hyperparameters(entry, hyperparameters)
    _check_pairs(entry, pairs)
    check_finite(dict(torch_module(model).named_parameters()), "The model")
    for single_pair in pairs:
        if reason := why_unknown(model, single_pair):
            warnings.warn(f"{reason}, so there is little to forget.", stacklevel=2)
    base = model_hash(model)
    start_time = time.perf_counter()
    delta = entry.make(model, pairs, seed=seed, **hyperparameters)
    seconds = time.perf_counter() - start_time
    facts = [{"subject": p.subject, "target": p.target, "relation": p.relation} for p in pairs]
    fact = facts[0] if len(facts) == 1 else facts
    all_hyperparameters = entry.hyperparameters() | hyperparameters
    edit = Edit(method, fact, delta, all_hyperparameters, seed, seconds, base)
    if torch_module(model).dtype == torch.float16:  # products may pass its largest number, 65,504
        require_finite_answers(model, edit, pairs)
    if (unsolved := delta.notes.get("relative_cost", 0.0)) > MAX_UNSOLVED:
        warnings.warn(
            f"The edit ({method}) left {unsolved:.0%} of what was wanted undone: what is to be "
            "forgotten and what must stay pull against each other. Look at what it leaves, or "
            "forget with another method.",
            stacklevel=2,
        )
    return edit


def _checked_hyperparameters(entry: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given hyperparameters by their names of today.

    Raises:
        UserError: The method has no such hyperparameter.
    """
    known = list(entry.hyperparameters())
    renamed = entry.hparams.current_names(given)
    for name in renamed:
        if name not in known:
            hint = suggestion(name, known)
            raise UserError(f"The method '{entry.name}' has no hyperparameter '{name}'{hint}.")
    return renamed


def _check_pairs(entry: Method, pairs: Sequence[ConceptPair]) -> None:
    """Refuse no pair, and several pairs for a method that takes one.

    Raises:
        UserError: Says which methods take several.
    """
    if not pairs:
        raise UserError("There is no pair to forget: give at least one.")
    if len(pairs) > 1 and not entry.supports_batch:
        together = ", ".join(n for n, m in METHODS.items() if m.supports_batch)
        raise UserError(
            f"The method '{entry.name}' forgets one pair at a time: make one edit after another, "
            f"or use one that solves for several at once ({together})."
        )


def require_finite_answers(model: LanguageModel, edit: Edit, pairs: Sequence[ConceptPair]) -> None:
    """Refuse an edit whose weights fit the model's dtype while its activations overflow it.

    Args:
        model: The model that it was made on.
        edit: The edit.
        pairs: Facts whose training prompts are run.

    Raises:
        UserError: The edited model's answers are not finite.
    """
    with edit.applied(model):
        prompts = [p for pair in pairs for p in pair.prompts("train")]
        probabilities = answer_probability(model, prompts)
    if not np.isfinite(probabilities).all():
        dtype = str(torch_module(model).dtype).removeprefix("torch.")
        raise UserError(
            f"With this edit ({edit._shown}) the model's answers are not finite: it writes more "
            f"than {dtype} has numbers for. Load the model as float32, or make another edit."
        )


def load_unlearning(path: str | Path) -> Edit:
    """Read an edit that `Edit.save` wrote; hyperparameters get their names of today.

    Raises:
        UserError: The file is missing, damaged, or not an edit of this suite.
    """
    delta, record = read_patch(path)
    if record["method"] in METHODS:
        hparams = METHODS[record["method"]].hparams
        record["hyperparameters"] = hparams.current_names(record["hyperparameters"])
    return Edit(delta=delta, **record)
