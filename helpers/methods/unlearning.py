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
from helpers.io.safe_text import visible
from helpers.methods.edit import Edit
from helpers.methods.edit_files import read_patch
from helpers.methods.registry import FORMS, METHODS, Method, methods_that_take
from helpers.models import model_hash, torch_module
from helpers.requests import FactsRequest, Request, TextRequest

# The proposed method in the form that needs no SAE; of text, neurons are what is selective.
DEFAULT_METHODS = {"pair": "gated_neuron", "pairs": "gated_neuron", "text": "selective_pruning"}
MAX_UNSOLVED = 0.05  # share of the residual's sum of squares that an edit may leave unmentioned


def unlearn(
    model: LanguageModel,
    request: Request,
    /,
    method: str | None = None,
    *,
    seed: int = 0,
    **hyperparameters: Any,
) -> Edit:
    """Make the edit that removes what is asked from `model`; the model itself stays as it is.

    Args:
        model: Any model of a known family.
        request: What to forget: a pair, several pairs, or a request of `helpers.requests`. Of
            facts, those that the model knows are forgotten together; a method that takes one pair
            at a time is refused.
        method: A name in `METHODS`; by default the one of `DEFAULT_METHODS`.
        seed: Seed of everything random.
        **hyperparameters: Hyperparameters of the method that differ from its defaults.

    Raises:
        UserError: There is no such method or hyperparameter, the method does not take such a
            request, the edit would change nothing, or numbers of the model, of the edit or of the
            edited model's predictions are not finite.

    Warns:
        UserWarning: The model does not know a pair, so there is nothing to forget; or an edit that
            is fitted left more than `MAX_UNSOLVED` of the targets unreached.
    """
    what = _forgotten(model, request)
    form = "text" if isinstance(what, TextRequest) else "pair" if len(what) < 2 else "pairs"
    method = DEFAULT_METHODS[form] if method is None else method
    if method not in METHODS:
        raise UserError(f"There is no method '{method}'{suggestion(method, METHODS)}.")
    entry = METHODS[method]
    hyperparameters = _checked_hyperparameters(entry, hyperparameters)
    _check_form(entry, form, what)
    check_finite(dict(torch_module(model).named_parameters()), "The model")
    pairs = [] if isinstance(what, TextRequest) else what
    # Of a request for facts, only those that the model knows are here.
    for pair in [] if isinstance(request, FactsRequest) else pairs:
        if reason := why_unknown(model, pair):
            warnings.warn(f"{reason}, so there is little to forget.", stacklevel=2)
    base = model_hash(model)
    start_time = time.perf_counter()
    delta = entry.make(model, what, seed=seed, **hyperparameters)
    seconds = time.perf_counter() - start_time
    all_hyperparameters = entry.hyperparameters() | hyperparameters
    edit = Edit(method, _recorded(what), delta, all_hyperparameters, seed, seconds, base)
    # In float16, products may pass its largest number, 65,504.
    if pairs and torch_module(model).dtype == torch.float16:
        require_finite_answers(model, edit, pairs)
    if (unsolved := delta.notes.get("relative_cost", 0.0)) > MAX_UNSOLVED:
        warnings.warn(
            f"The edit ({method}) left {unsolved:.0%} of what was wanted undone: what is to be "
            "forgotten and what must stay pull against each other. Look at what it leaves, or "
            "forget with another method.",
            stacklevel=2,
        )
    return edit


def _forgotten(model: LanguageModel, request: Request) -> list[ConceptPair] | TextRequest:
    """Return the pairs to forget, or the text.

    Raises:
        UserError: There is nothing to forget.
    """
    if isinstance(request, TextRequest):
        return request
    if isinstance(request, FactsRequest):
        return list(request.known(model).pairs)
    pairs = [request] if isinstance(request, ConceptPair) else list(request)
    if not pairs:
        raise UserError("There is no pair to forget: give at least one.")
    return pairs


def _recorded(what: Sequence[ConceptPair] | TextRequest) -> Any:
    """Return plain data that tells what was forgotten."""
    if isinstance(what, TextRequest):
        return {"request": what.name, "kind": what.kind}
    facts = [{"subject": p.subject, "target": p.target, "relation": p.relation} for p in what]
    return facts[0] if len(facts) == 1 else facts


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


def _check_form(entry: Method, form: str, what: Sequence[ConceptPair] | TextRequest) -> None:
    """Refuse a request of a form that the method does not take.

    Raises:
        UserError: Says which methods take it.
    """
    if form in entry.takes:
        return
    able = ", ".join(methods_that_take(form))
    if form == "pairs" and "pair" in entry.takes:
        raise UserError(
            f"The method '{entry.name}' forgets one pair at a time: make one edit after another, "
            f"or use one that solves for several at once ({able})."
        )
    shown = visible(str(what)) if isinstance(what, TextRequest) else FORMS[form]
    raise UserError(
        f"The method '{entry.name}' does not forget {shown}: choose one that takes {FORMS[form]} "
        f"({able})."
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
