"""From the rows of a fact benchmark to a list of pairs with their prompts."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.facts.pair_file import OWN_RELATION
from helpers.facts.relations import Template
from helpers.forward.prompts import Prompt, answer_separator
from helpers.io.safe_text import name_pattern, visible
from helpers.requests.benchmarks.roles import role_of
from helpers.requests.checks import ForgottenFacts, check_apart
from helpers.requests.facts_requests import pair_list
from helpers.requests.items import text_field
from helpers.requests.request import FactsRequest
from helpers.requests.rows import BadRows, Row, check_file, read_rows

log = logging.getLogger(__name__)

N_OTHERS = 48  # other subjects of a relation that a pair is compared with
DEV_FRAME, HELDOUT_FRAME = "Note: {}", "Among other things it says: {}"  # of one wording alone

ToPairs = Callable[[Row], Sequence[ConceptPair]]
"""Makes the pairs of a row; none where the row lacks a field."""


def facts_request(
    benchmark: str, paths: Sequence[Path], to_pairs: ToPairs, expected: str
) -> FactsRequest:
    """Make the request of a benchmark of facts.

    The facts of the files that stay become the `others` of the pairs of the same relation. A fact
    that comes twice counts once; a prompt that must stay and asks for one of the facts to forget is
    left out.

    Args:
        benchmark: Its name.
        paths: Its files, the first of which is to be forgotten.
        to_pairs: Makes the pairs of a row.
        expected: The fields that a row has to have, for sentences.

    Raises:
        UserError: A file cannot be used, its name does not say what it is for, or a fact is to be
            forgotten and to stay.
    """
    by_role: dict[str, list[ConceptPair]] = {"forget": [], "retain": [], "never_learned": []}
    for number, path in enumerate(paths):
        role = role_of(path, is_first=number == 0)
        by_role[role] += _read_pairs(path, to_pairs, expected)
    forgotten = list(dict.fromkeys(by_role["forget"]))
    if n_repeated := len(by_role["forget"]) - len(forgotten):
        log.info("%d facts of %s come more than once.", n_repeated, visible(paths[0]))
    others: dict[str, dict[str, ConceptPair]] = {}  # relation → subject → pair
    for pair in by_role["retain"]:
        if pair.relation != OWN_RELATION:
            others.setdefault(pair.relation, {}).setdefault(pair.subject, pair)
    index = ForgottenFacts(forgotten)
    pairs = []
    for pair in forgotten:
        first = islice(others.get(pair.relation, {}).values(), N_OTHERS + 1)
        compared = tuple(o for o in first if o.subject != pair.subject)[:N_OTHERS]
        must_stay = tuple(p for p in pair.must_stay if index.asked_by(p) is None)
        pairs.append(replace(pair, must_stay=must_stay, others=compared))
    request = pair_list(f"{benchmark} {paths[0].stem}", pairs)
    check_apart(request)
    return request


def _read_pairs(path: Path, to_pairs: ToPairs, expected: str) -> list[ConceptPair]:
    """Read the pairs of a file; refuse rows that lack a field."""
    check_file(path)
    pairs: list[ConceptPair] = []
    bad_rows, n_good = BadRows(path, expected), 0
    for number, row in read_rows(path):
        try:
            of_row = to_pairs(row)
        except UserError as error:
            raise UserError(f"Row {number} of {visible(path)}: {error}") from None
        pairs += of_row
        n_good += bool(of_row)
        if not of_row:
            bad_rows.add(number, row)
    bad_rows.refuse(n_good=n_good)
    return pairs


def inner(row: Row, *names: str) -> Row:
    """Return an object inside a row, by the fields that lead to it; empty where there is none."""
    value: Any = row
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[Row]:
    """Return the objects of a list; empty for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def make_pair(
    subject: str,
    answers: Sequence[str],
    wordings: Iterable[str],
    *,
    relation: str = "",
    must_stay: Iterable[Prompt] = (),
) -> ConceptPair | None:
    """Make a pair of a benchmark's wordings; None where something is missing.

    Args:
        subject: The subject.
        answers: The target, and its aliases.
        wordings: Texts to complete, each with the subject's name or `{}` in its place.
        relation: The benchmark's name of the relation; `own` if empty.
        must_stay: Prompts whose answers have to stay.
    """
    templates = split_templates(subject, answers, wordings) if subject and answers else None
    if not templates:
        return None
    return ConceptPair(
        subject,
        answers[0],
        relation or OWN_RELATION,
        tuple(answers[1:]),
        templates,
        tuple(must_stay),
    )


def split_templates(
    subject: str, answers: Sequence[str], wordings: Iterable[str]
) -> dict[str, tuple[Template, ...]] | None:
    """Deal wordings out to the splits; None where none of them can be used.

    A wording that does not name the subject, or tells the answer, is left out. The first is for
    training, the last held out; one in between is for development. Missing ones are the first
    wording behind a short text.
    """
    tells = name_pattern(*answers)
    texts = [_with_slot(text.strip(), subject) for text in wordings]
    texts = [t for t in dict.fromkeys(texts) if t and not tells.search(t)]
    if not texts:
        return None
    first, *more = texts
    heldout = more.pop() if more else HELDOUT_FRAME.replace("{}", first)
    dev = more.pop() if more else DEV_FRAME.replace("{}", first)
    return {
        "train": tuple(map(Template, [first, *more])),
        "dev": (Template(dev),),
        "heldout": (Template(heldout),),
    }


def _with_slot(text: str, subject: str) -> str:
    """Put the slot in the place of the subject's last mention; empty without one."""
    if "{}" in text:
        return text
    mentions = list(name_pattern(subject).finditer(text))
    if not mentions:
        return ""
    start, end = mentions[-1].span()
    return f"{text[:start]}{{}}{text[end:]}"


def stay_prompt(text: str, answers: Sequence[str], subject: str) -> Prompt | None:
    """Make a prompt whose answer has to stay; None where something is missing."""
    text = text.strip()
    if not text or not answers:
        return None
    separator = answer_separator(text)
    named = subject if name_pattern(subject).search(text) else ""
    return Prompt(
        text,
        subject=named,
        answers=tuple(f"{separator}{answer}" for answer in answers),
        relation=OWN_RELATION,
    )


def texts_of(value: Any) -> list[str]:
    """Return the texts of a list that are not empty."""
    values = value if isinstance(value, list) else []
    return [text for v in values if (text := text_field({"v": v}, "v"))]
