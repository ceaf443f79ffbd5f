"""MQuAKE: facts on which questions of several hops rest (Zhong et al. 2023).

A row has `requested_rewrite`, a list of facts with `prompt` (`{}` for the subject), `subject`,
`relation_id`, `target_true` with `str`, and `question`. What is forgotten are the true targets. The
row's questions of several hops (`questions`) are not part of the request: they test what follows.
"""

from collections.abc import Sequence
from pathlib import Path

from helpers.facts import ConceptPair
from helpers.requests.benchmarks.facts import facts_request, inner, make_pair, objects
from helpers.requests.items import text_field
from helpers.requests.request import FactsRequest
from helpers.requests.rows import Row

FIELDS = "'requested_rewrite', a list with 'prompt', 'subject' and 'target_true',"


def read(paths: Sequence[Path]) -> FactsRequest:
    """Read MQuAKE's files; facts of a file whose name holds `retain` are other subjects.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return facts_request("mquake", paths, to_pairs, FIELDS)


def to_pairs(row: Row) -> list[ConceptPair]:
    """Make the pairs of a row; none where a field of one is missing."""
    pairs = []
    for fact in objects(row.get("requested_rewrite")):
        question, target = (
            text_field(fact, "question"),
            text_field(inner(fact, "target_true"), "str"),
        )
        pairs.append(
            make_pair(
                text_field(fact, "subject"),
                [target] if target else [],
                [text_field(fact, "prompt"), *([f"Q: {question}\nA:"] if question else [])],
                relation=text_field(fact, "relation_id"),
            )
        )
    complete = [pair for pair in pairs if pair]
    return complete if len(complete) == len(pairs) else []
