"""Undo of one fact of an edit that forgets several together."""

from dataclasses import replace

from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.io.safe_text import visible
from helpers.methods.edit import Edit
from helpers.methods.edit_stack import base_model
from helpers.methods.registry import METHODS, methods_that_take
from helpers.methods.unlearning import unlearn
from helpers.requests import FactsRequest


def without_fact(
    model: LanguageModel, edit: Edit, request: FactsRequest, fact: ConceptPair
) -> Edit:
    """Make an edit again without one of its facts, which now has to stay like any other.

    Facts of one subject share the subject's key, and their values were solved for together. So no
    part of the edit is one fact's alone: the method solves again for the rest, with the same
    hyperparameters and seed. The fact's training prompts join what must stay.

    An edit of one pair is undone exactly by `Edit.revert`, in any order.

    Args:
        model: The model that the edit was made on, with edits or without.
        edit: The edit of the whole request; it is not changed.
        request: What was forgotten.
        fact: The fact to take back.

    Raises:
        UserError: The fact is none of the request's, it is the only one, or the method does not
            solve for several pairs.
    """
    rest = tuple(pair for pair in request.pairs if pair != fact)
    if len(rest) == len(request.pairs):
        raise UserError(
            f"{visible(str(fact))} ({visible(fact.relation)}) is none of the facts of "
            f"'{visible(request.name)}': take back one of those."
        )
    if not rest:
        raise UserError(
            f"{visible(str(fact))} is the only fact of '{visible(request.name)}': revert the edit."
        )
    if edit.method not in METHODS or not METHODS[edit.method].supports_batch:
        raise UserError(
            f"An edit by '{visible(edit.method)}' is not solved for several facts, so it cannot be "
            "solved again without one: revert the edit of that fact, or forget with one of "
            f"{', '.join(methods_that_take('pairs'))}."
        )
    kept = tuple(fact.prompts("train"))
    pairs = tuple(replace(pair, must_stay=(*pair.must_stay, *kept)) for pair in rest)
    remaining = FactsRequest(request.name, request.kind, pairs, request.passages)
    with base_model(model):
        return unlearn(model, remaining, edit.method, seed=edit.seed, **edit.hyperparameters)
