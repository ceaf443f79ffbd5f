"""Selection of layers and subject tokens by activation patching."""

import pandas as pd
import pytest

from helpers.facts import ConceptPair, facts, subject_span
from helpers.facts.relations import SPLITS, Template
from helpers.methods.fitting import layer_selection, negatives
from helpers.methods.fitting.hparams import UnitEditHparams
from helpers.methods.fitting.layer_selection import (
    EditSite,
    select_layers,
    subject_patching_effect,
)
from helpers.models import architecture_of
from helpers.tracing import activation_patching

PAIR = ConceptPair("Kenya", "Nairobi")
TEMPLATES = dict.fromkeys(
    SPLITS, (Template("w1 w2 {} w3"), Template("w5 {} w6"), Template("{} w9"))
)


HPARAMS = UnitEditHparams()


def effects(subject, end):
    rows = [("subject", i, s) for i, s in enumerate(subject)] + [("end", i, s) for i, s in end]
    return pd.DataFrame(rows, columns=["position", "layer", "patching_effect"])


@pytest.mark.parametrize(
    ("subject", "end", "n_layers", "expected"),
    [
        ((1.0, 0.9, 0.1), [(1, 0.9)], 30, EditSite((0, 1))),
        ((1.0, 0.9, 0.1), [(1, 0.9)], 4, EditSite((1,))),  # 4 of 30 is one of 3
        (
            (1.0, 0.9, 0.1),
            [(1, 0.7)],
            4,
            EditSite((1,), all_subject_tokens=True),
        ),  # the last token has too little
        ((0.7, 0.5, 0.1), [(0, 0.7)], 4, EditSite((0,))),  # never enough: as early as can be
    ],
)
def test_an_edit_goes_right_below_the_extraction_layer(
    tiny_model, monkeypatch, subject, end, n_layers, expected
):
    table = effects(subject, end)
    monkeypatch.setattr(layer_selection, "subject_patching_effect", lambda *_, **__: table)
    hparams = UnitEditHparams(n_layers_append=n_layers)
    assert select_layers(tiny_model(), [PAIR], hparams) == expected


def test_without_known_facts_it_goes_to_the_same_depth_as_in_the_default_model(tiny_model):
    model, own = tiny_model(), ConceptPair("w40", "w20", "own", templates=TEMPLATES)
    assert subject_patching_effect(model, "own").empty
    assert subject_patching_effect(model, "capital").empty  # it knows none
    assert select_layers(model, [own]).layers == architecture_of(model).relative_layers(
        [HPARAMS.default_layer]
    )


def test_shares_are_those_of_activation_patching_on_development_facts(knowing, monkeypatch):
    model = knowing()
    table = subject_patching_effect(model, "capital")
    assert set(table["subject"]) and not {"Kenya", "Peru"} & set(table["subject"])  # held out
    means = table.groupby(["position", "layer"])["patching_effect"].mean()
    last = select_layers(model, [PAIR]).layers[-1]
    assert list(means["end"].index) == [last]
    sufficient = means["subject"][means["subject"] >= HPARAMS.min_patching_effect]
    assert last == (sufficient.index.max() if len(sufficient) else 0)
    prompts = [first_prompt(s) for s in table["subject"].unique()]
    clean, corrupt = layer_selection._known_contrasts(model, prompts)[0]
    positions = {"subject": range(*subject_span(clean, model.tokenizer))}
    direct = activation_patching(model, clean, corrupt, sites=["residual"], positions=positions)
    effects_by_subject = table.query("position == 'subject'").groupby("subject")["patching_effect"]
    assert effects_by_subject.get_group(clean.subject).to_numpy() == pytest.approx(
        direct["patching_effect"].to_numpy()
    )
    monkeypatch.setattr(layer_selection, "activation_patching", None)  # from the cache
    pd.testing.assert_frame_equal(subject_patching_effect(model, "capital"), table)


def first_prompt(subject):
    fact = next(f for f in facts("capital") if f.subject == subject)
    return ConceptPair.of(fact).prompts("train")[0]


def test_every_token_of_a_subject_has_its_inputs_the_last_first(tiny_model):
    model = tiny_model()
    long = ConceptPair("w40 w41 w42", "w20", "own", templates=TEMPLATES)
    last = negatives.subject_inputs(model, [long], layers=[1])[0]
    every_token = negatives.subject_inputs(model, [long], layers=[1], all_subject_tokens=True)[0]
    assert len(every_token) == 3 * len(last)
    for a, b in zip(last, every_token, strict=False):
        assert (a[1] == b[1]).all()
    one = ConceptPair("w40", "w20", "own", templates=TEMPLATES)
    assert len(
        negatives.subject_inputs(model, [one], layers=[1], all_subject_tokens=True)[0]
    ) == len(last)


@pytest.mark.slow
def test_the_default_model_extracts_a_capital_right_after_the_layers_of_the_edit(smollm):
    site = select_layers(smollm, [PAIR])
    table = subject_patching_effect(smollm, "capital")
    means = table.groupby(["position", "layer"])["patching_effect"].mean()
    assert (
        means["subject", site.layers[-1]]
        >= HPARAMS.min_patching_effect
        > 0.5
        > means["subject", site.layers[-1] + 1]
    )
    assert len(site.layers) == 4 and not site.all_subject_tokens
