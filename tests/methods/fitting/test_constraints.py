"""Constraints: which prompts are preserved, with which answers and weights."""

from dataclasses import replace

import pytest
import torch
from tiny_models import TEMPLATES

from helpers.facts import ConceptPair, Prompt
from helpers.forward.scoring import answer_probability, next_token_and_answer
from helpers.methods.fitting.constraints import (
    CONTEXT_TEMPLATES,
    RetainPrompts,
    confidence_weight,
    preservation_constraints,
    retain_prompts,
)
from helpers.methods.fitting.hparams import PreservationHparams
from helpers.methods.fitting.linearization import linearize

HPARAMS = PreservationHparams()


def constraints_on(model, prompts, hparams=HPARAMS, **options):
    group = RetainPrompts(prompts, **options)
    return preservation_constraints(model, group, next_token_and_answer(model, prompts), hparams)


def retained_texts(model, pairs, *, n_neighbours=0):
    groups = retain_prompts(model, pairs, n_neighbours=n_neighbours, top_k=3, seed=0)
    return [str(p) for group in groups for p in group.prompts]


def test_a_facts_answer_is_kept_whole_where_it_is_likely(tiny_model):
    model = tiny_model()
    prompt = Prompt("w1 w2 w3", answers=(" w7 w9",))
    ids = tuple(model.tokenizer(str(prompt)).input_ids)
    first, second = (model.tokenizer(w).input_ids[0] for w in ("w7", "w9"))
    p = float(answer_probability(model, [prompt])[0])

    likeliest, whole = constraints_on(model, [prompt], replace(HPARAMS, min_prob=p / 2))
    n = len(ids)
    assert whole.ids == (*ids, first)
    assert whole.target_tokens == ((n - 1, (first,)), (n, (second,)))
    assert likeliest.ids == whole.ids  # one forward pass
    assert likeliest.target_tokens[0][0] == n - 1
    logodds = linearize(model, [whole], layers=[0]).logodds
    torch.testing.assert_close(logodds.sigmoid(), torch.tensor([p]), rtol=1e-3, atol=0)

    (alone,) = constraints_on(model, [prompt], replace(HPARAMS, min_prob=p * 2))
    assert alone.ids == ids and alone.target_tokens == likeliest.target_tokens


def test_what_must_stay_is_also_kept_behind_a_context_prefix(tiny_model):
    stay = Prompt("The longest river of France is the", subject="France", answers=(" Loire",))
    pair = ConceptPair("France", "the euro", "currency", must_stay=(stay,))
    texts = set(retained_texts(tiny_model(), [pair]))
    prompts = [p for f in (*pair.same_subject(), *pair.same_target()) for p in f.prompts("train")]
    prompts.append(stay)
    plain = [str(p) for p in prompts if p.messages is None]
    assert len(plain) > len(CONTEXT_TEMPLATES)
    for text in plain:
        assert text in texts and sum(f"{o}{text}" in texts for o in CONTEXT_TEMPLATES) == 1
    chats = [str(p) for p in prompts if p.messages]  # their form is the template's
    assert chats and not texts & {f"{o}{chat}" for o in CONTEXT_TEMPLATES for chat in chats}
    assert {o for o in CONTEXT_TEMPLATES for t in texts if t.startswith(o)} == set(
        CONTEXT_TEMPLATES
    )


def test_facts_that_one_pair_forgets_are_not_preserved_for_another(tiny_model, monkeypatch):
    known = {"Spain", "Italy", "Peru"}
    monkeypatch.setattr("helpers.methods.fitting.constraints.known_subjects", lambda *_: known)
    capital = [ConceptPair(s, t, "capital") for s, t in (("France", "Paris"), ("Spain", "Madrid"))]
    money = next(p for p in capital[0].same_subject() if p.relation == "currency")
    one, three = (
        set(retained_texts(tiny_model(), pairs, n_neighbours=9))
        for pairs in (capital[:1], [*capital, money])
    )
    assert one & {str(p) for p in capital[1].prompts("train")}
    assert one & {str(p) for p in money.prompts("train")}
    assert not three & {str(p) for pair in (capital[1], money) for p in pair.prompts("train")}
    assert any("Italy" in text for text in three)


def test_unlikely_answers_have_less_weight(tiny_model):
    weights = [confidence_weight(p, HPARAMS) for p in (0.9, 0.5, 0.25, 0.01)]
    assert weights == [1.0, 1.0, 0.25, 0.02]
    model = tiny_model()
    prompts = [Prompt(f"w1 w{n} w3", answers=(" w7",)) for n in (2, 9, 20)]
    for constraint in constraints_on(model, prompts):
        p = float(linearize(model, [constraint], layers=[0]).logodds.sigmoid())
        assert constraint.weight == pytest.approx(confidence_weight(p, HPARAMS), rel=1e-3)
        assert constraint.weight < 1
    stay = Prompt("w1 w2 w3", answers=(" w7",))
    pair = ConceptPair("w40", "w20", "own", templates=TEMPLATES, must_stay=(stay,))
    groups = retain_prompts(model, [pair], n_neighbours=0, top_k=3, seed=0)
    assert {group.weight for group in groups} == {1.0}  # the user says so
    must_stay = constraints_on(model, groups[0].prompts, weight=1.0)
    assert must_stay and {c.weight for c in must_stay} == {1.0}
