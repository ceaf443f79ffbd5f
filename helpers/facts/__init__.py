"""Facts: concept pairs, ways of asking for them, and which of them a model knows."""

from helpers.facts.factbook import Fact, fact_split, facts
from helpers.facts.known import known_facts, require_known
from helpers.facts.pairs import ConceptPair
from helpers.facts.prompts import Prompt, render, subject_span
from helpers.facts.relations import RELATIONS, SPLITS, Relation, Template

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
    "known_facts",
    "render",
    "require_known",
    "subject_span",
]
