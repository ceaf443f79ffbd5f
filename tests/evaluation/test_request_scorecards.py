"""Scorecards of requests against direct computations, and the attacks on text."""

import numpy as np
import pytest
import torch

from helpers.errors import UserError
from helpers.evaluation import evaluate
from helpers.evaluation.facts_scorecard import N_CONTROLS
from helpers.evaluation.text_attacks import text_attacks
from helpers.evaluation.text_scorecard import corpus_floor, evaluate_text, worst_change
from helpers.facts import ConceptPair, Prompt
from helpers.facts.associated import associated_controls
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.models import torch_module
from helpers.requests import Corpus, Document, TextRequest, entity

FORGET = Corpus.of_texts("forget", [f"w5 w6 w{i} w8 w9 w10 w11 w12" for i in range(20, 28)])
KEPT = Corpus.of_texts("kept", [f"w30 w31 w{i} w33 w34 w35" for i in range(40, 48)])
QUESTIONS = tuple(Prompt(f"w3 w{i}", answers=(f" w{i + 1}",)) for i in range(10, 14))
REQUEST = TextRequest(
    "words", "files", FORGET, FORGET, (FORGET,), (KEPT,), (KEPT,), KEPT, QUESTIONS, QUESTIONS
)


def direct_loss(model, corpus, n_tokens=64) -> list[float]:
    module, losses = torch_module(model), []
    for example in corpus.examples(model, n_tokens=n_tokens):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            logprobs = module(ids).logits[0].log_softmax(-1)
        nll = [-logprobs[n - 1, example.ids[n]] for n in range(example.labels_start, ids.shape[1])]
        losses.append(float(torch.stack(nll).mean()))
    return losses


def test_losses_kl_and_shares_are_what_they_say(grown_model, own_pair):
    model = grown_model()
    before, kept_before = direct_loss(model, FORGET), direct_loss(model, KEPT)
    floor = np.mean(direct_loss(model, FORGET.shuffled()))
    edit = unlearn(model, REQUEST, "gradient_ascent", steps=3)
    with edit.applied(model):
        card = evaluate_text(model, REQUEST, n_tokens=64)
        after, kept = direct_loss(model, FORGET), direct_loss(model, KEPT)
    assert card.before["loss_forget"] == pytest.approx(np.mean(before), rel=1e-4)
    assert card["loss_forget"].value == pytest.approx(np.mean(after), rel=1e-4)
    share = (np.mean(after) - np.mean(before)) / (floor - np.mean(before))
    assert card["forgotten_forget"].value == pytest.approx(share, rel=1e-3)
    assert corpus_floor(model, FORGET, 64) == pytest.approx(floor, rel=1e-4)
    assert card.floors == {"forget": pytest.approx(floor, rel=1e-4)}
    change = np.mean(kept) / np.mean(kept_before) - 1
    assert card["change_kept"].value == pytest.approx(change, abs=1e-4)
    assert worst_change(card) == card["change_kept"]
    assert card["kl_kept"].value > 0 and 0 <= card["answers"].value <= 1


def test_without_an_edit_nothing_is_forgotten(grown_model):
    card = evaluate(grown_model(), REQUEST, n_tokens=64)
    assert card["forgotten_forget"].value == 0 == card["change_kept"].value
    assert card["kl_kept"].value == pytest.approx(0, abs=1e-6)
    assert card["answers"].value == card.before["answers"]


def test_of_answers_behind_prompts_the_answers_count(grown_model):
    corpus = Corpus("qa", lambda: [Document(f" w{i + 1}", f"w3 w{i}") for i in range(10, 16)])
    request = TextRequest("qa", "files", corpus, corpus, (corpus,), (KEPT,), (KEPT,))
    card = evaluate_text(model := grown_model(), request, n_tokens=200)
    assert card["loss_qa"].value == pytest.approx(
        np.mean(direct_loss(model, corpus, 200)), rel=1e-4
    )


def test_the_scorecard_of_an_entity_averages_its_facts(knowing):
    model = knowing()
    request = entity("Japan").known(model)
    edit = unlearn(model, request, "gated_neuron")
    with edit.applied(model):
        card = evaluate(model, request, n_neighbours=4, n_tokens=256)
        p = [answer_probability(model, pair.prompts("heldout")).mean() for pair in request.pairs]
    assert card["named"].value == pytest.approx(np.mean(p), abs=1e-6)
    assert card["worst_fact"].value == pytest.approx(max(p), abs=1e-6)
    assert list(card.facts["after"]) == pytest.approx(p, abs=1e-6)
    assert 0 <= card["neighbours"].value <= 1 and "same_subject" not in card
    level = [
        np.mean([answer_probability(model, c.prompts("heldout")).mean() for c in controls])
        if (controls := associated_controls(pair, n=N_CONTROLS))
        else np.nan
        for pair in request.pairs
    ]  # in the original
    assert list(card.facts["associated"]) == pytest.approx(level, abs=1e-6, nan_ok=True)
    compared = [(a, c) for a, c in zip(p, level, strict=True) if np.isfinite(c)]
    above = np.mean([after > control for after, control in compared])
    assert card["above"].value == pytest.approx(above)
    several = evaluate(model, list(request.pairs), n_neighbours=4, n_tokens=256)
    assert several["named"].value == pytest.approx(several.before["named"])


def test_facts_of_the_subject_that_stay_are_measured(knowing):
    model = knowing()
    pairs = [ConceptPair("Japan", "Tokyo"), ConceptPair("Peru", "Lima")]
    card = evaluate(model, pairs, n_neighbours=4, n_tokens=256)
    assert card["same_subject"].value == 1 and card["neighbours"].value == 1


def test_attacks_on_text(grown_model, own_pair):
    model = grown_model()
    weights = {n: p.clone() for n, p in torch_module(model).named_parameters()}
    edit = unlearn(model, REQUEST, "gradient_ascent", steps=3)
    table = text_attacks(model, REQUEST, edit, steps=[2, 4], lr=3e-3, n_tokens=64)
    edited = table[table["state"] == "edited"].set_index(["attack", "steps"])
    assert set(edited.index) == {
        ("none", 0),
        ("int8", 0),
        ("int4", 0),
        *((f"relearning_{name}", n) for name in ("unrelated", "forgotten") for n in (2, 4)),
    }
    with edit.applied(model):
        assert edited.loc[("none", 0), "loss"] == pytest.approx(np.mean(direct_loss(model, FORGET)))
    assert edited.loc[("relearning_forgotten", 4), "gain"] > 0  # it is trained on just that
    assert table[table["state"] == "control"]["forgotten"].isna().all()
    assert table[table["state"] == "control"]["gain"].notna().all()
    for name, parameter in torch_module(model).named_parameters():
        assert torch.equal(parameter, weights[name]), name
    with pytest.raises(UserError, match="There is no attack 'int3'"):
        text_attacks(model, REQUEST, edit, attacks=["int3"])
