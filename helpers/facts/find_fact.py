"""Looking up the Factbook's fact about a subject, with a sentence where there is none."""

import difflib

from helpers.errors import UserError
from helpers.facts.factbook import Fact, facts
from helpers.facts.relations import RELATIONS
from helpers.io.safe_text import visible


def find_fact(subject: str, relation: str) -> Fact:
    """Return the Factbook's fact about a subject.

    Args:
        subject: A country's English name.
        relation: One of `RELATIONS`.

    Raises:
        UserError: There is no such relation, or the Factbook has no such subject.
    """
    if relation not in RELATIONS:
        raise UserError(
            f"There is no relation '{visible(relation)}'; choose from {', '.join(RELATIONS)}, or "
            "give your own prompts in a YAML file."
        )
    known = {f.subject: f for f in facts(relation)}
    if subject not in known:
        names = sorted({*known, *(f.subject for f in facts("language"))})
        close = difflib.get_close_matches(subject, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "use a country's English name"
        raise UserError(
            f"The Factbook has no {relation} for '{visible(subject)}': {hint}; for anything else "
            "give your own prompts in a YAML file."
        )
    return known[subject]
