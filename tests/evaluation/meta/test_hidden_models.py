"""Models that are known to hide a fact, and what attacks see of it."""

import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation.meta.hidden_models import (
    Hiding,
    attack_sensitivity,
    hidden_models,
    hide,
    proven_attacks,
)
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_probability
from helpers.methods.controls.subject_shift import subject_shift
from helpers.models import model_hash


def test_a_shifted_subject_is_not_asked_for_and_other_text_stays(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    start, prompts = model_hash(model), pair.prompts("train")
    before = answer_probability(model, prompts).mean()
    edit = subject_shift(model, pair, layer=0, target_prob=0.05)
    (change,) = edit.delta.changes.values()
    assert change.rank == 1
    with edit.applied(model):
        assert answer_probability(model, prompts).mean() < 0.06 < before
    assert model_hash(model) == start
    with pytest.raises(UserError, match="No shift in layer 0 brings P"):
        subject_shift(model, pair, layer=0, target_prob=0.0)


def test_every_attack_is_tried_on_every_way_of_hiding(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    start = model_hash(model)
    table = attack_sensitivity(model, [pair], attacks=["stitching", "paraphrases"], n_controls=2)
    assert model_hash(model) == start
    hidden = [hiding.value for hiding, _ in hidden_models(model, pair)]
    assert list(dict.fromkeys(table["hiding"])) == hidden and len(hidden) >= 3
    by_output = table[table["hiding"] == Hiding.OUTPUT].set_index("attack")
    # The last layer hides it: asking finds nothing, the original's last layer says it.
    assert by_output.loc["stitching", "seen"] and not by_output.loc["paraphrases", "seen"]
    assert "stitching" in proven_attacks(table)
    with pytest.raises(UserError, match="begins with the attack 'paraphrases'"):
        attack_sensitivity(model, [pair], attacks=["stitching"])


def test_an_expensive_attack_is_tried_until_it_sees_a_way_of_hiding(knowing):
    table = attack_sensitivity(
        knowing(),
        [ConceptPair("Kenya", "Nairobi")],
        attacks=["paraphrases", "stitching", "pruning", "relearning_forgotten"],
        options={"relearning_forgotten": {"steps": (5,), "rates": (1e-2,)}},
        n_controls=2,
    )
    hidings = list(dict.fromkeys(table["hiding"]))
    for attack, rows in table.groupby("attack"):
        seen = rows["seen"].tolist()
        cheap = attack in ("paraphrases", "stitching")
        until_seen = hidings[: seen.index(True) + 1] if True in seen and not cheap else hidings
        assert rows["hiding"].tolist() == until_seen
    relearned = table[table["attack"] == "relearning_forgotten"]
    assert relearned["seen"].any() and len(relearned) < len(hidings)


def test_an_attack_is_proven_by_one_way_of_hiding_on_half_of_the_facts():
    rows = [
        ("lens", "output", True), ("lens", "output", False), ("lens", "refusal", False),
        ("blind", "output", False), ("blind", "refusal", False), ("blind", "refusal", False),
        ("luck", "output", True), ("luck", "output", False), ("luck", "output", False),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["attack", "hiding", "seen"])
    assert proven_attacks(table) == ("lens",)


def test_the_same_edit_hides_it_again(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    one, two = (hide(model, pair, Hiding.SUBJECT_SHIFT, seed=0) for _ in range(2))
    assert one.delta.edited_tensors_hash == two.delta.edited_tensors_hash
