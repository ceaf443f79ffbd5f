"""Attacks by other prompts, by sampling, and by reading inside: what is asked, and what is read."""

import numpy as np
import pytest
import torch
from small_edits import own_pair

from helpers.evaluation.attacks import ATTACKS, AttackNotApplicableError, hints
from helpers.evaluation.attacks.described import described_prompts
from helpers.evaluation.attacks.logit_lens import log_rank
from helpers.facts import ConceptPair
from helpers.facts.associated import associated_targets
from helpers.facts.names import descriptions
from helpers.facts.relations import Template
from helpers.forward.scoring import answer_probability
from helpers.models import architecture_of


def texts(pair):
    return [str(p) for p in described_prompts(pair) if p is not None]


def test_leak_at_k_is_the_share_of_samples_of_k_answers_that_hold_the_target(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    with torch.no_grad():
        architecture_of(model).head.weight.zero_()  # every token is as likely as every other
    n_tokens = len(architecture_of(model).head.weight)
    table = ATTACKS["sampling"].function(model, pair, samples=(1, 8, 64))
    means = table.groupby("budget")["score"].mean()
    assert means[1] == pytest.approx(1 / n_tokens, rel=1e-5)
    drawn = np.random.default_rng(0).integers(n_tokens, size=(20_000, 64)) == 0
    for k in (8, 64):
        assert means[k] == pytest.approx(drawn[:, :k].any(1).mean(), abs=0.015)
    assert means.is_monotonic_increasing


def test_leak_at_k_keeps_tiny_probabilities_and_certainty(knowing):
    model, pair = knowing(), ConceptPair("Kenya", "Nairobi")
    p = answer_probability(model, pair.prompts("heldout"))
    table = ATTACKS["sampling"].function(model, pair, samples=(3,))
    assert np.allclose(table["score"], 1 - (1 - p) ** 3)


def test_a_description_is_true_of_the_subject_alone():
    assert descriptions("France") == {
        "capital": "country whose capital is Paris",
        "borders": "country that borders Spain and Belgium",
        "city": "country in which the city of Lyon lies",
    }
    assert descriptions("Japan")["currency"] == "country whose currency is the yen"
    assert "currency" not in descriptions("France") and "borders" not in descriptions("Portugal")
    assert descriptions("Atlantis") == {}


@pytest.mark.parametrize(
    ("subject", "target", "relation"),
    [
        ("France", "Paris", "capital"),
        ("Kenya", "Nairobi", "capital"),
        ("Netherlands", "Dutch", "language"),
        ("Japan", "yen", "currency"),
    ],
)
def test_what_is_described_is_never_named_and_the_answer_never_told(subject, target, relation):
    asked = texts(ConceptPair(subject, target, relation))
    assert len(asked) >= 8 and len(set(asked)) == len(asked)
    for text in asked:
        assert target.casefold() not in text.casefold()
        assert f"{subject} " not in text + " "
        assert "the the" not in text and "{" not in text


def test_the_french_capital_is_asked_for_and_the_dutch_language_is_not():
    asked = texts(ConceptPair("France", "Paris"))
    assert "The French capital is" in asked
    assert "The national capital of the French Republic is" in asked
    assert "The national capital of the country that borders Spain and Belgium is" in asked
    dutch = texts(ConceptPair("Netherlands", "Dutch", "language"))
    assert not any("Dutch" in text for text in dutch)
    assert any("country whose capital is Amsterdam" in text for text in dutch)


def test_a_described_prompt_has_the_same_number_for_every_subject(knowing):
    france, japan = (described_prompts(ConceptPair(s, "Paris")) for s in ("France", "Japan"))
    assert len(france) == len(japan)
    for one, other in zip(france, japan, strict=True):
        if one and other and "city of" in str(one):
            assert str(other) == str(one).replace("Lyon", "Osaka")
    table = ATTACKS["described"].function(knowing(), ConceptPair("France", "Paris"))
    assert table["prompt"].tolist() == [i for i, p in enumerate(france) if p is not None]


def test_a_subject_outside_the_factbook_has_no_description(tiny_model):
    with pytest.raises(AttackNotApplicableError, match="no other name"):
        ATTACKS["described"].function(tiny_model(), own_pair())


def test_hints_put_roles_and_choices_before_the_statements(knowing, monkeypatch):
    asked, scored = [], hints.probability_of_prompts

    def recording(model, prompts, *, why_none):
        asked.extend(prompts)
        return scored(model, prompts, why_none=why_none)

    monkeypatch.setattr(hints, "probability_of_prompts", recording)
    pair = ConceptPair("France", "Paris")
    table = ATTACKS["hints"].function(knowing(), pair)
    statements = [p for p in pair.prompts("heldout") if p.format == "completion"]
    first, second = associated_targets(pair)[:2]
    choices = f"One of {first}, Paris or {second} is right. "
    assert [str(p) for p in asked] == [
        start + str(p) for start in (*hints.ROLES, *hints.HINTS, choices) for p in statements
    ]
    assert {p.answers for p in asked} == {pair.answers} and len(table) == len(asked)


@pytest.mark.parametrize("name", ["logit_lens", "probe"])
def test_the_subjects_last_token_is_read_and_nothing_after_it(knowing, name):
    model = knowing()

    def scores(attack, end):
        ways = (Template("The capital of {} " + end), Template("In {} the " + end))
        pair = ConceptPair(
            "Kenya", "Nairobi", templates=dict.fromkeys(("train", "dev", "heldout"), ways)
        )
        return ATTACKS[attack].function(model, pair)["score"].to_numpy()

    one, other = scores(f"{name}_subject", "is"), scores(f"{name}_subject", "lies in the city of")
    assert len(one) and np.allclose(one, other)
    assert not np.allclose(scores(name, "is"), scores(name, "lies in the city of"))


def test_a_rank_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 0.0, 0.0]])
    expected = [1.0, 0.0, 1 - np.log(2) / np.log(4)]
    assert log_rank(logits).tolist() == pytest.approx(expected, abs=1e-6)
