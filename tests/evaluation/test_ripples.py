"""What follows from facts: closure by hand, and questions around a fact that a model knows."""

import pytest

from helpers.evaluation.ripples import (
    ALIASES,
    KINDS,
    LOGIC,
    OF_TARGET,
    SPECIFIC,
    TWO_HOPS,
    deep_unlearning,
    facts_around,
    ripple_prompts,
    ripple_scores,
)
from helpers.facts import ConceptPair
from helpers.facts.rules import Rule, closure, minimal_removals, rules_between
from helpers.methods import unlearn
from helpers.requests import entity

CAPITAL, COUNTRY, CITY = ("x", "capital", "y"), ("x", "language", "z"), ("y", "language", "z")
PARIS = ConceptPair("France", "Paris")


def rules():
    return [
        Rule(frozenset({CAPITAL, COUNTRY}), CITY),
        Rule(frozenset({CAPITAL, CITY}), COUNTRY),
    ]


def test_what_follows_is_in_the_closure():
    assert closure({CAPITAL, CITY}, rules()) == {CAPITAL, CITY, COUNTRY}
    assert closure({CITY}, rules()) == {CITY}
    chain = [Rule(frozenset({(str(i),) * 3}), (str(i + 1),) * 3) for i in range(5)]
    assert len(closure({("0",) * 3}, chain)) == 6


def test_every_deduction_has_to_be_cut():
    removals = minimal_removals(COUNTRY, {CAPITAL, COUNTRY, CITY}, rules())
    assert set(removals) == {frozenset({COUNTRY, CAPITAL}), frozenset({COUNTRY, CITY})}
    assert minimal_removals(COUNTRY, {COUNTRY, CITY}, rules()) == [frozenset({COUNTRY})]
    assert minimal_removals(CAPITAL, {CAPITAL, COUNTRY, CITY}, rules()) == [frozenset({CAPITAL})]


def test_the_rules_of_the_factbook_join_a_country_and_its_capital():
    around = facts_around([PARIS])
    found = {(r.conclusion, r.premises) for r in rules_between(around)}
    of_city = ("Paris", "language", "French")
    premises = frozenset({("France", "capital", "Paris"), of_city})
    assert (("France", "language", "French"), premises) in found


def test_questions_are_of_four_kinds_and_tell_no_answer():
    by_kind = {}
    for kind, prompt in ripple_prompts(PARIS):
        by_kind.setdefault(kind, []).append(prompt)
    assert set(by_kind) == set(KINDS) == {LOGIC, TWO_HOPS, ALIASES, SPECIFIC, OF_TARGET}
    for prompt in [*by_kind[TWO_HOPS], *by_kind[ALIASES]]:
        assert "Paris" not in str(prompt) and "France" not in str(prompt)
        assert prompt.answers[0] == " Paris"
    assert all(" France" in prompt.answers for prompt in by_kind[LOGIC])


def test_an_unedited_model_keeps_everything_and_an_edit_does_not(knowing):
    model = knowing()
    table = ripple_scores(model, [PARIS]).set_index("kind")
    assert table["after"].to_numpy() == pytest.approx(table["before"].to_numpy())
    assert all(left.value == pytest.approx(1) for left in table["left"])
    edit = unlearn(model, PARIS, "tangent_kernel")
    with edit.applied(model):
        edited = ripple_scores(model, [PARIS]).set_index("kind")
    assert edited["before"].to_numpy() == pytest.approx(table["before"].to_numpy())
    assert edited.loc[SPECIFIC, "must"] == "stay" and not edited.equals(table)


def test_a_fact_forgotten_alone_is_deduced_and_an_entity_is_not(knowing, monkeypatch):
    model, request = knowing(), entity("France", relations=("capital", "language"))
    capital, language = request.pairs
    facts, states = facts_around(request.pairs), iter(())

    def known(model, pairs, split):
        removed = next(states)
        return {(p.subject, p.relation, p.target) for p in pairs if p not in removed}

    monkeypatch.setattr("helpers.evaluation.ripples._known", known)
    states = iter([[], [language]])
    row = deep_unlearning(model, [language], facts).iloc[0]
    assert row["removed"] and row["deduced"] and row["recall"] == 0.5 and row["accuracy"] == 1
    states = iter([[], [language, capital]])
    table = deep_unlearning(model, request.pairs, facts).set_index("relation")
    assert not table["deduced"].any() and table["recall"].tolist() == [1, 1]
    assert table["accuracy"].tolist() == [1, 1]  # what was asked for is no loss
