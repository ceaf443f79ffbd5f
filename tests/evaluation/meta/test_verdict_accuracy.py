"""A battery put to the test on facts whose state is known."""

import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation.meta.hidden_models import Hiding
from helpers.evaluation.meta.verdict_accuracy import (
    accuracies,
    classify_facts,
    predicted_state,
)
from helpers.evaluation.verdict import Label, Verdict
from helpers.models import model_hash

ATTACKS = ("paraphrases", "stitching")  # which see what is hidden in the last layer


def test_known_states_are_predicted(knowing):
    model = knowing()
    start = model_hash(model)
    table = classify_facts(model, "capital", n=3, attacks=ATTACKS)
    assert model_hash(model) == start
    assert table.query("state == 'present'")["fact"].nunique() == 3
    kinds = table.query("state == 'absent'").groupby("kind").size().to_dict()
    assert kinds == {"associated": 3, "unrelated": 3}
    hidden = table.query("state == 'hidden'")
    assert 1 <= len(hidden) <= 3 and hidden["kind"].is_unique  # each way in turn
    by_output = hidden.set_index("kind").loc[Hiding.OUTPUT]
    assert by_output["predicted"] in ("hidden", "suppressed") and by_output["correct"]
    accuracy = accuracies(table).set_index("state")
    assert accuracy.loc["present", "accuracy"] == 1
    assert accuracy.loc["present", "low"] == pytest.approx(0.025 ** (1 / 3))  # all of three


def test_what_is_there_and_called_absent_is_counted():
    rows = [("hidden", "absent"), ("hidden", "suppressed"), ("absent", "absent"), ("absent", "?")]
    table = pd.DataFrame(rows, columns=["state", "predicted"])
    table["correct"] = [False, True, True, False]
    found = accuracies(table).set_index("state")
    assert found["falsely_absent"].to_dict() == {"hidden": 1, "absent": 0}
    assert found["correct"].to_dict() == {"hidden": 1, "absent": 1}


def test_a_state_is_absent_where_all_that_could_be_tried_shows_it():
    def state(*findings, label=Label.PARTIAL):
        attacks = pd.DataFrame({"finding": findings})
        return predicted_state(Verdict(label, [], attacks, pd.DataFrame()))

    assert state("gone", "gone") == "absent"
    assert state("gone", "not known under it") == "absent"  # the original says nothing there
    assert state("gone", "nothing to attack") == "undecided"  # no hold on the edited model
    assert state("gone", "open") == "undecided"
    assert state("open", "comes back") == state("gone", "some prompts come back") == "partial"
    assert state("not known under it") == "undecided"
    assert state("gone", label=Label.SUPPRESSED) == "suppressed"
    assert state("gone", label=Label.HIDDEN) == "hidden"


def test_paraphrases_alone_take_hidden_for_absent(knowing):
    table = classify_facts(knowing(), "capital", n=2, attacks=["paraphrases"])
    hidden = table.query("state == 'hidden'")
    assert set(hidden["predicted"]) == {"absent"} and not hidden["correct"].any()


def test_a_battery_without_a_plain_question_is_refused(tiny_model):
    with pytest.raises(UserError, match="paraphrases"):
        classify_facts(tiny_model(), "capital", n=2, attacks=["logit_lens"])
