"""Requests for facts: makers, what is known, and which methods take them."""

import pytest

from helpers.errors import UserError
from helpers.facts import RELATIONS, ConceptPair, facts
from helpers.facts.known import are_known, why_unknown
from helpers.forward.scoring import answer_probability
from helpers.methods import METHODS, load_unlearning, unlearn
from helpers.methods.registry import methods_that_take
from helpers.requests import Corpus, FactsRequest, TextRequest, entity, pair_list, topic

FRANCE = ConceptPair("France", "Paris")
JAPAN = ConceptPair("Japan", "Tokyo")


def text_request(texts=("w5 w6 w7 w8 w9 w10",)) -> TextRequest:
    corpus = Corpus.of_texts("forget", texts)
    kept = Corpus.of_texts("kept", ["w20 w21 w22 w23 w24 w25 w26"] * 3)
    return TextRequest("words", "files", corpus, corpus, (corpus,), (kept,), (kept,))


def test_an_entity_has_every_fact_of_its_subject_once():
    request = entity("France")
    expected = {r for r in RELATIONS if any(f.subject == "France" for f in facts(r))}
    assert {p.relation for p in request.pairs} == expected
    assert len(request.pairs) == len(expected) and {p.subject for p in request.pairs} == {"France"}
    assert all("France" in document.text for document in request.passages)


def test_a_topic_has_every_subject_of_its_relation():
    assert {p.subject for p in topic("capital").pairs} == {f.subject for f in facts("capital")}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: entity("Frence"), "did you mean France"),
        (lambda: entity("France", relations=["capitol"]), "There is no relation 'capitol'"),
        (lambda: topic("capitol"), "There is no relation 'capitol'"),
        (lambda: pair_list("mine", []), "no fact to forget in 'mine'"),
        (
            lambda: pair_list("mine", [FRANCE, JAPAN, FRANCE]),
            "France → Paris .capital. comes twice",
        ),
        (lambda: FactsRequest("x", "list", ()), "no fact to forget in 'x'"),
    ],
)
def test_bad_requests_are_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


def test_unknown_facts_are_left_out(knowing):
    model = knowing()
    pairs = [FRANCE, ConceptPair("Chile", "Santiago"), JAPAN, *entity("Peru").pairs]
    assert are_known(model, pairs) == [why_unknown(model, pair) is None for pair in pairs]
    request = pair_list("two", pairs[:2])
    assert request.known(model).pairs == (FRANCE,)
    with pytest.raises(UserError, match="knows none of the facts of 'one'"):
        pair_list("one", [ConceptPair("Chile", "Santiago")]).known(model)


def test_methods_say_what_they_take(knowing):
    model = knowing()
    assert set(methods_that_take("pairs")) <= set(methods_that_take("pair"))
    with pytest.raises(UserError, match=r"'rome' forgets one pair at a time.*gated_neuron"):
        unlearn(model, pair_list("two", [FRANCE, JAPAN]), "rome")
    with pytest.raises(
        UserError, match=r"'rome' does not forget words .files.: choose one that.*npo"
    ):
        unlearn(model, text_request(), "rome")


@pytest.mark.parametrize(
    ("name", "options"), [("gated_neuron", {}), ("gradient_difference", {"lr": 1e-2})]
)
def test_one_edit_forgets_an_entity(knowing, name, options):
    model = knowing()
    pairs = entity("Japan").known(model).pairs
    assert len(pairs) > 2
    edit = unlearn(model, entity("Japan"), name, **options)
    assert [p["relation"] for p in edit.pair] == [p.relation for p in pairs]
    for pair in pairs:
        before = answer_probability(model, pair.prompts("train")).mean()
        with edit.applied(model):
            after = answer_probability(model, pair.prompts("train")).mean()
        assert after < 0.5 * before, str(pair)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient_ascent", {"steps": 4}),
        *(("npo", {"steps": 6, "robust": robust}) for robust in ("", "sam", "lat", "layered")),
        ("repselect", {"kl_budget": 0.5, "n_tokens": 64}),
    ],
)
def test_methods_that_train_forget_text(grown_model, name, options, tmp_path, monkeypatch):
    from helpers.evaluation.text_scorecard import evaluate_text

    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    model, request = grown_model(), text_request([f"w5 w6 w{i} w8 w9 w10" * 12 for i in range(8)])
    edit = unlearn(model, request, name, **options)
    with edit.applied(model):
        card = evaluate_text(model, request, n_tokens=64)
    assert card["loss_forget"].value > card.before["loss_forget"]
    edit.save(tmp_path / "text.safetensors")
    loaded = load_unlearning(tmp_path / "text.safetensors")
    assert loaded.pair == {"request": "words", "kind": "files"}
    assert loaded.delta.same_as(edit.delta)


def test_every_method_takes_a_form_that_exists():
    from helpers.methods.registry import FORMS

    for entry in METHODS.values():
        assert entry.takes and set(entry.takes) <= set(FORMS), entry.name
