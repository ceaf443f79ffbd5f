"""Prompts that mean a subject without its name: for training, and other ones for the attack."""

import pytest

from helpers.evaluation.attacks.described import described_prompts
from helpers.facts import ConceptPair, facts
from helpers.facts.concept_prompts import (
    OTHER_FORMATS,
    adjective_prompts,
    concept_prompts,
    prompts_in_other_formats,
)
from helpers.facts.names import tells_neither
from helpers.facts.relations import SPLITS, Template


def pair_of(subject, relation="capital"):
    return next(ConceptPair.of(f) for f in facts(relation) if f.subject == subject)


@pytest.mark.parametrize("relation", ["capital", "language", "currency"])
def test_no_prompt_names_the_subject_or_tells_the_answer(relation):
    asked = 0
    for fact in facts(relation)[::7]:
        pair = ConceptPair.of(fact)
        for prompt in concept_prompts(pair):
            assert tells_neither(str(prompt), pair.subject, pair.answers), prompt
            assert prompt.answers == pair.prompts("train")[0].answers
            start, end = prompt.locate_subject()
            assert str(prompt)[start:end] == prompt.subject
            asked += 1
    assert asked > 50


def test_a_country_is_meant_by_adjective_official_name_neighbours_and_cities():
    texts = [str(p) for p in concept_prompts(pair_of("France"))]
    assert "The French parliament meets in the capital," in texts
    assert "The capital of the French Republic is" in texts
    assert any("the nation that shares borders with Spain and" in t for t in texts)
    assert any("the nation to which the city of Marseille belongs" in t for t in texts)
    assert not adjective_prompts(pair_of("France", "language"))  # "French" is the answer


def test_the_attack_asks_in_words_that_no_edit_has_seen():
    for fact in facts("capital")[::5]:
        pair = ConceptPair.of(fact)
        trained = {str(p) for p in concept_prompts(pair)}
        assert not trained & {str(p) for p in described_prompts(pair) if p is not None}


def test_other_formats_are_new_to_their_relation():
    for relation in OTHER_FORMATS:
        for fact in facts(relation)[::40]:
            pair = ConceptPair.of(fact)
            prompts = prompts_in_other_formats(pair)
            known = {str(p) for split in SPLITS for p in pair.prompts(split)}
            assert {p.format for p in prompts} == {"chat", "list"}
            assert not known & {str(p) for p in prompts}
            assert all(p.split == "train" and p.relation == relation for p in prompts)


def test_other_subjects_and_relations_have_none():
    templates = dict.fromkeys(SPLITS, (Template("The king of {} lives in"),))
    own = ConceptPair("Atlantis", "Poseidonis", "own", templates=templates)
    assert not concept_prompts(own)
    assert not adjective_prompts(pair_of("France", "continent"))
