"""Requests of chapters 12 to 14: those of a user's files, or the run's own."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.evaluation.benchmark_scores import benchmark_of, benchmark_scores, compared
from helpers.facts import RELATIONS, ConceptPair, facts
from helpers.methods import Edit, unlearn
from helpers.methods.unlearning import DEFAULT_METHODS
from helpers.models import load_model
from helpers.requests import (
    CAPABILITIES,
    FactsRequest,
    TextRequest,
    capability,
    check_capability,
    entity,
    pair_list,
    read_request,
)


def facts_request(file: str, pair: ConceptPair) -> FactsRequest:
    """Return the request of a file of facts; else the subject as an entity, or else the pair alone.

    Args:
        file: A file, or nothing. One that asks for text is for another chapter.
        pair: The fact of the run.

    Raises:
        UserError: The file is no request.
    """
    request = read_request(file) if file else None
    if isinstance(request, FactsRequest):
        return request
    if any(fact.subject == pair.subject for name in RELATIONS for fact in facts(name)):
        return entity(pair.subject)
    return pair_list(pair.subject, [pair])


def text_request(model: LanguageModel, file: str, name: str) -> TextRequest:
    """Return the request of a file of text; else a capability that the model has.

    Args:
        model: The model.
        file: A file, or nothing. One that asks for facts is for another chapter.
        name: Name of a capability; empty for the first of `CAPABILITIES` that the model has.

    Raises:
        UserError: The file is no request, there is no such capability, or the model lacks it.
    """
    request = read_request(file) if file else None
    if isinstance(request, TextRequest):
        return request
    if name:
        check_capability(model, request := capability(name))
        return request
    for name in CAPABILITIES:
        try:
            check_capability(model, request := capability(name))
        except UserError:
            continue
        return request
    raise UserError(
        f"The model has none of the capabilities {', '.join(CAPABILITIES)}: give a file with text "
        "that it should forget (REQUEST=...), or leave the chapter 13_capabilities out (ONLY=...)."
    )


def edits_of(
    model: LanguageModel, request: FactsRequest | TextRequest, methods: str, *, seed: int
) -> tuple[dict[str, Edit], dict[str, str]]:
    """Make an edit of a request by each method that can.

    Args:
        model: The model.
        request: What to forget.
        methods: Names by commas.
        seed: Seed of everything random.

    Returns:
        Method → edit, and method → why it was refused.

    Raises:
        UserError: Every method was refused; the sentence is the first one's.
    """
    edits: dict[str, Edit] = {}
    refused: dict[str, str] = {}
    for method in [name.strip() for name in methods.split(",")]:
        try:
            edits[method] = unlearn(model, request, method, seed=seed)
        except UserError as error:
            refused[method] = str(error)
    if not edits:
        raise UserError(next(iter(refused.values())))
    return edits, refused


@dataclass(frozen=True)
class OwnScores:
    """Scores of a user's benchmark files, of the model as it is and after each method.

    Attributes:
        name: The request.
        table: One row a test and figure, with a column a model (`compared`).
        scores: One row a question, figure and model.
        refused: Method → why it made no edit.
    """

    name: str
    table: pd.DataFrame
    scores: pd.DataFrame
    refused: dict[str, str]


def scores_of_benchmark(settings: Any) -> OwnScores | None:
    """Score the files of a benchmark that the settings of chapter 14 name; None without any.

    The model is loaded again: the chapter's own one was fine-tuned on invented people. Facts are
    forgotten by the default method as well, since few of those for text take them.

    Raises:
        UserError: The files cannot be used.
    """
    if not benchmark_of(settings.request_file):
        return None
    model = load_model(settings.model, dtype=settings.dtype, device=settings.device)
    request, methods = read_request(settings.request_file), settings.methods
    if isinstance(request, FactsRequest):
        methods = f"{DEFAULT_METHODS['pairs']}, {methods}"

    def measure() -> pd.DataFrame:
        return benchmark_scores(model, settings.request_file, n_questions=settings.n_questions)

    scores = {"original": measure()}
    edits: dict[str, Edit] = {}
    try:
        edits, refused = edits_of(model, request, methods, seed=settings.seed)
    except UserError as error:  # the original's scores are worth a table
        refused = {"all": str(error)}
    for method, edit in edits.items():
        with edit.applied(model):
            scores[method] = measure()
    rows = pd.concat([table.assign(model=name) for name, table in scores.items()])
    return OwnScores(str(request), compared(scores), rows.reset_index(drop=True), refused)
