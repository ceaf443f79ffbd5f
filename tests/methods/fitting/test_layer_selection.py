"""Where a fact leaves the subject's tokens, and which of them carry it."""

import pandas as pd
import pytest

from helpers.facts import ConceptPair, facts, subject_span
from helpers.facts.relations import SPLITS, Template
from helpers.methods.fitting import layer_selection as handover
from helpers.methods.fitting import negatives as background
from helpers.methods.fitting.layer_selection import (
    MIN_PATCHING_EFFECT,
    EditSite,
    carried,
    select_layers,
)
from helpers.models import architecture_of
from helpers.tracing import activation_patching

PAIR = ConceptPair("Kenya", "Nairobi")
WAYS = dict.fromkeys(SPLITS, (Template("w1 w2 {} w3"), Template("w5 {} w6"), Template("{} w9")))


def shares(subject, end):
    rows = [("subject", i, s) for i, s in enumerate(subject)] + [("end", i, s) for i, s in end]
    return pd.DataFrame(rows, columns=["position", "layer", "patching_effect"])


@pytest.mark.parametrize(
    ("subject", "end", "width", "wanted"),
    [
        ((1.0, 0.9, 0.1), [(1, 0.9)], 30, EditSite((0, 1))),
        ((1.0, 0.9, 0.1), [(1, 0.9)], 4, EditSite((1,))),  # 4 of 30 is one of 3
        (
            (1.0, 0.9, 0.1),
            [(1, 0.7)],
            4,
            EditSite((1,), every=True),
        ),  # the last token has too little
        ((0.7, 0.5, 0.1), [(0, 0.7)], 4, EditSite((0,))),  # never enough: as early as can be
    ],
)
def test_an_edit_goes_right_below_the_hand_over(
    tiny_model, monkeypatch, subject, end, width, wanted
):
    monkeypatch.setattr(handover, "carried", lambda model, relation: shares(subject, end))
    assert select_layers(tiny_model(), [PAIR], width=width) == wanted


def test_without_known_facts_it_goes_to_the_same_depth_as_in_the_default_model(tiny_model):
    model, own = tiny_model(), ConceptPair("w40", "w20", "own", templates=WAYS)
    assert carried(model, "own").empty
    assert carried(model, "capital").empty  # it knows none
    assert select_layers(model, [own], width=4).layers == architecture_of(model).relative_layers(
        [handover.DEFAULT]
    )


def test_shares_are_those_of_activation_patching_on_development_facts(knowing, monkeypatch):
    model = knowing()
    table = carried(model, "capital")
    assert set(table["subject"]) and not {"Kenya", "Peru"} & set(table["subject"])  # held out
    means = table.groupby(["position", "layer"])["patching_effect"].mean()
    last = select_layers(model, [PAIR], width=4).layers[-1]
    assert list(means["end"].index) == [last]
    enough = means["subject"][means["subject"] >= MIN_PATCHING_EFFECT]
    assert last == (enough.index.max() if len(enough) else 0)
    asked = [first_wording(s) for s in table["subject"].unique()]
    clean, corrupt = handover._contrasts(model, asked)[0]
    where = {"subject": range(*subject_span(clean, model.tokenizer))}
    direct = activation_patching(model, clean, corrupt, sites=["residual"], positions=where)
    mine = table.query("position == 'subject'").groupby("subject")["patching_effect"]
    assert mine.get_group(clean.subject).to_numpy() == pytest.approx(
        direct["patching_effect"].to_numpy()
    )
    monkeypatch.setattr(handover, "activation_patching", None)  # from the cache
    pd.testing.assert_frame_equal(carried(model, "capital"), table)


def first_wording(subject):
    fact = next(f for f in facts("capital") if f.subject == subject)
    return ConceptPair.of(fact).prompts("train")[0]


def test_every_token_of_a_subject_has_its_inputs_the_last_first(tiny_model):
    model = tiny_model()
    long = ConceptPair("w40 w41 w42", "w20", "own", templates=WAYS)
    last = background.subject_inputs(model, [long], layers=[1])[0]
    every = background.subject_inputs(model, [long], layers=[1], every=True)[0]
    assert len(every) == 3 * len(last)
    for a, b in zip(last, every, strict=False):
        assert (a[1] == b[1]).all()
    one = ConceptPair("w40", "w20", "own", templates=WAYS)
    assert len(background.subject_inputs(model, [one], layers=[1], every=True)[0]) == len(last)


@pytest.mark.slow
def test_the_default_model_hands_a_capital_over_right_after_the_layers_of_the_edit(smollm):
    where = select_layers(smollm, [PAIR], width=4)
    means = carried(smollm, "capital").groupby(["position", "layer"])["patching_effect"].mean()
    assert (
        means["subject", where.layers[-1]]
        >= MIN_PATCHING_EFFECT
        > 0.5
        > means["subject", where.layers[-1] + 1]
    )
    assert len(where.layers) == 4 and not where.every
