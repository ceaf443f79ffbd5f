"""One call that scores any request, by the scorecard of its form."""

from typing import Any

from nnsight import LanguageModel

from helpers.evaluation import scorecard
from helpers.evaluation.facts_scorecard import evaluate_facts
from helpers.evaluation.scorecard import Scorecard
from helpers.evaluation.text_scorecard import evaluate_text
from helpers.facts import ConceptPair
from helpers.requests import FactsRequest, Request, TextRequest, pair_list


def evaluate(model: LanguageModel, request: Request, **options: Any) -> Scorecard:
    """Score the model with its edits, and without them for comparison.

    Args:
        model: The model, with `Edit`s applied or without.
        request: What was to be forgotten: a pair, several pairs, or a request of
            `helpers.requests`.
        **options: Those of `helpers.evaluation.scorecard.evaluate` for a pair, of `evaluate_facts`
            for several facts, of `evaluate_text` for text.

    Raises:
        UserError: There is nothing to score, or an option is out of range.
    """
    if isinstance(request, ConceptPair):
        return scorecard.evaluate(model, request, **options)
    if isinstance(request, TextRequest):
        return evaluate_text(model, request, **options)
    if not isinstance(request, FactsRequest):
        request = pair_list("pairs", request)
    return evaluate_facts(model, request, **options)
