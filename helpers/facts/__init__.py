"""Facts: concept pairs, ways of asking for them, and which of them a model knows."""

from helpers.facts.factbook import Fact, fact_split, facts
from helpers.facts.known import known_facts, require_known
from helpers.facts.pairs import ConceptPair
from helpers.facts.relations import RELATIONS, SPLITS, Relation, Template
from helpers.forward.prompts import Prompt, input_text, subject_span

__all__ = [
    "RELATIONS",
    "SPLITS",
    "ConceptPair",
    "Fact",
    "Prompt",
    "Relation",
    "Template",
    "fact_split",
    "facts",
    "input_text",
    "known_facts",
    "require_known",
    "subject_span",
]
