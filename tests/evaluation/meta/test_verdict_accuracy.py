"""A battery put to the test on facts whose state is known."""

import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation.battery import Evidence
from helpers.evaluation.meta.verdict_accuracy import (
    MINI_SUITE,
    accuracies,
    classify_facts,
    predicted_state,
)
from helpers.evaluation.verdict import Label, Verdict
from helpers.models import model_hash


def test_known_states_are_predicted(knowing):
    model = knowing()
    start = model_hash(model)
    table = classify_facts(model, "capital", n=3, attacks=MINI_SUITE)
    assert model_hash(model) == start
    assert table.groupby("state").size().to_dict() == {"absent": 3, "hidden": 3, "present": 3}
    accuracy = accuracies(table).set_index("state")
    assert accuracy["accuracy"].to_dict() == {"present": 1, "hidden": 1, "absent": 1}
    assert accuracy.loc["hidden", "low"] == pytest.approx(0.025 ** (1 / 3))  # all of three
    assert (table["correct"] == (table["predicted"] == table["state"])).all()


def test_a_state_is_absent_where_all_that_could_be_tried_shows_it():
    def state(*findings, not_applicable=()):
        attacks = pd.DataFrame({"finding": findings})
        conclusion = Verdict(Label.PARTIAL, [], attacks, pd.DataFrame())
        return predicted_state(
            conclusion, Evidence(pd.DataFrame(), dict.fromkeys(not_applicable, "why"))
        )

    assert state("gone", "gone") == "absent"
    assert state("gone", "nothing to attack") == "absent"  # the original says nothing there
    assert (
        state("gone", "nothing to attack", not_applicable=["stitching"]) == "undecided"
    )  # no hold
    assert state("gone", "open") == state("gone", "comes back") == "undecided"
    assert state("nothing to attack") == "undecided"


def test_paraphrases_alone_take_hidden_for_absent(knowing):
    table = classify_facts(knowing(), "capital", n=2, attacks=["paraphrases"])
    assert set(table.query("state == 'hidden'")["predicted"]) == {"absent"}


def test_a_battery_without_a_plain_question_is_refused(tiny_model):
    with pytest.raises(UserError, match="paraphrases"):
        classify_facts(tiny_model(), "capital", n=2, attacks=["logit_lens"])
