"""The requests of the chapters on entities and capabilities: a user's file, or the run's own."""

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import RELATIONS, ConceptPair, facts
from helpers.methods import Edit, unlearn
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
