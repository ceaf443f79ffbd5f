"""CounterFact: facts with paraphrases and neighbours (Meng et al. 2022).

A row has `requested_rewrite` with `prompt` (`{}` for the subject), `subject`, `relation_id` and
`target_true` with `str`; `paraphrase_prompts` and `neighborhood_prompts`. What is forgotten is the
true target. The neighbours, other subjects with the same target, must stay.
"""

from collections.abc import Sequence
from pathlib import Path

from helpers.facts import ConceptPair
from helpers.requests.benchmarks.facts import (
    facts_request,
    inner,
    make_pair,
    stay_prompt,
    texts_of,
)
from helpers.requests.items import text_field
from helpers.requests.request import FactsRequest
from helpers.requests.rows import Row

FIELDS = "'requested_rewrite' with 'prompt', 'subject' and 'target_true'"


def read(paths: Sequence[Path]) -> FactsRequest:
    """Read CounterFact's files; rows of a file whose name holds `retain` are other subjects.

    Raises:
        UserError: A file is of another format, or its name does not say what it is for.
    """
    return facts_request("counterfact", paths, to_pairs, FIELDS)


def to_pairs(row: Row) -> list[ConceptPair]:
    """Make the pair of a row; none where a field is missing."""
    fact = inner(row, "requested_rewrite")
    subject, target = text_field(fact, "subject"), text_field(inner(fact, "target_true"), "str")
    if not subject or not target or "{}" not in (prompt := text_field(fact, "prompt")):
        return []
    neighbours = texts_of(row.get("neighborhood_prompts"))
    must_stay = (stay_prompt(text, [target], subject) for text in neighbours)
    pair = make_pair(
        subject,
        [target],
        [prompt, *texts_of(row.get("paraphrase_prompts"))],
        relation=text_field(fact, "relation_id"),
        must_stay=[p for p in must_stay if p and not p.subject],
    )
    return [pair] if pair else []
