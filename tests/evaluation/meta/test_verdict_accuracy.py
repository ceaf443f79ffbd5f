"""A battery put to the test on facts whose state is known."""

import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation.battery import Evidence
from helpers.evaluation.meta.verdict_accuracy import (
    SHORT,
    accuracies,
    known_states,
    predicted_state,
)
from helpers.evaluation.verdict import Verdict
from helpers.models import model_hash


def test_known_states_get_their_own_word(knowing):
    model = knowing()
    start = model_hash(model)
    table = known_states(model, "capital", n=3, attacks=SHORT)
    assert model_hash(model) == start
    assert table.groupby("state").size().to_dict() == {"absent": 3, "hidden": 3, "present": 3}
    shares = accuracies(table).set_index("state")
    assert shares["share"].to_dict() == {"present": 1, "hidden": 1, "absent": 1}
    assert shares.loc["hidden", "low"] == pytest.approx(0.025 ** (1 / 3))  # all of three
    assert (table["right"] == (table["word"] == table["state"])).all()


def test_a_state_is_absent_where_all_that_could_be_tried_shows_it():
    def state(*findings, nothing=()):
        attacks = pd.DataFrame({"finding": findings})
        found = Verdict("partial", [], attacks, pd.DataFrame())
        return predicted_state(found, Evidence(pd.DataFrame(), dict.fromkeys(nothing, "why")))

    assert state("gone", "gone") == "absent"
    assert state("gone", "nothing to attack") == "absent"  # the original says nothing there
    assert state("gone", "nothing to attack", nothing=["stitched"]) == "undecided"  # no hold
    assert state("gone", "open") == state("gone", "comes back") == "undecided"
    assert state("nothing to attack") == "undecided"


def test_asking_alone_takes_hidden_for_absent(knowing):
    table = known_states(knowing(), "capital", n=2, attacks=["paraphrases"])
    assert set(table.query("state == 'hidden'")["word"]) == {"absent"}


def test_a_battery_without_a_plain_question_is_refused(tiny_model):
    with pytest.raises(UserError, match="paraphrases"):
        known_states(tiny_model(), "capital", n=2, attacks=["lens"])
