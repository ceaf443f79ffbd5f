"""Associated controls: non-answers of the same subject."""

import pytest

from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.facts.associated import associated_controls, associated_targets
from helpers.facts.names import other_names


def test_other_cities_stand_beside_a_capital():
    names = associated_targets(ConceptPair("France", "Paris"))
    assert {"Lyon", "Marseille"} <= set(names) and "Paris" not in names
    assert "New York" in associated_targets(ConceptPair("United States", "Washington"))


@pytest.mark.parametrize(
    ("subject", "target", "relation", "expected"),
    [
        ("Switzerland", "German", "language", "French"),
        ("Brazil", "real", "currency", "peso"),
        ("France", "French", "nationality", "Belgian"),
    ],
)
def test_other_relations_take_what_is_near(subject, target, relation, expected):
    names = associated_targets(ConceptPair(subject, target, relation))
    assert expected in names and target not in names


def test_where_the_subject_has_none_other_subjects_lend_theirs():
    iceland = ConceptPair("Iceland", "Reykjavik")
    assert associated_targets(iceland) == []
    controls = associated_controls(iceland, n=4)
    assert len(controls) == 4 and len({c.subject for c in controls}) == 4
    assert not any(c.subject == "Iceland" or c.target == "Reykjavik" for c in controls)


def test_a_control_asks_the_pairs_own_prompts():
    pair = ConceptPair("France", "Paris")
    (lyon, *_) = associated_controls(pair, n=1)
    assert lyon.target == "Lyon"
    assert [str(p) for p in lyon.prompts("heldout")] == [str(p) for p in pair.prompts("heldout")]
    assert lyon.prompts("heldout")[0].answers == (" Lyon",)


def test_a_users_file_names_its_own(tmp_path):
    path = tmp_path / "pair.yaml"
    text = "subject: France\ntarget: Paris\nassociated: [Lyon, Nice]\n"
    path.write_text(text)
    assert associated_targets(ConceptPair.from_file(path)) == ["Lyon", "Nice"]
    path.write_text(text.replace("Nice", "Paris"))
    with pytest.raises(UserError, match=r"'associated:' holds 'Paris'.*is no answer"):
        ConceptPair.from_file(path)


def test_other_names_are_the_official_one_and_the_adjective():
    assert other_names("France") == ("French Republic", "French")
    assert other_names("Atlantis") == ("", "")
