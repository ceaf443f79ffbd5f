"""Makers of requests about facts: a list of pairs, an entity, a topic."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from helpers.errors import UserError
from helpers.facts import RELATIONS, ConceptPair, facts
from helpers.facts.corpus import passages
from helpers.io.choices import check_choice
from helpers.io.safe_text import name_pattern, visible
from helpers.requests.corpus import Corpus, Document
from helpers.requests.request import FactsRequest


def pair_list(name: str, pairs: Iterable[ConceptPair]) -> FactsRequest:
    """Make a request of a list of pairs.

    Raises:
        UserError: There is none, or a pair comes twice.
    """
    pairs = tuple(pairs)
    for pair, n in Counter(pairs).items():
        if n > 1:
            raise UserError(
                f"The pair {visible(str(pair))} ({visible(pair.relation)}) comes twice in "
                f"'{visible(name)}': name it once."
            )
    return FactsRequest(name, "list", pairs)


def entity(subject: str, *, relations: Sequence[str] = tuple(RELATIONS)) -> FactsRequest:
    """Make the request to forget everything about a country: all its relations.

    Args:
        subject: A country of the Factbook.
        relations: The relations to forget; all by default.

    Raises:
        UserError: The Factbook has no such subject, or there is no such relation.
    """
    for relation in relations:
        check_choice("relation", relation, RELATIONS)
    pairs = [
        ConceptPair.of(fact)
        for relation in relations
        for fact in facts(relation)
        if fact.subject == subject
    ]
    if not pairs:
        ConceptPair(subject, "?", relations[0])  # says which name is meant

    def about() -> Iterator[Document]:
        pattern = name_pattern(subject)
        return (Document(p.text) for p in passages("train") if pattern.search(p.text))

    return FactsRequest(subject, "entity", tuple(pairs), Corpus(f"about {subject}", about))


def topic(relation: str) -> FactsRequest:
    """Make the request to forget a whole relation: the capitals of all countries, for instance.

    Raises:
        UserError: There is no such relation.
    """
    check_choice("relation", relation, RELATIONS)
    return FactsRequest(relation, "topic", tuple(ConceptPair.of(f) for f in facts(relation)))
