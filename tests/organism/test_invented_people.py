"""Invented people: the same from a seed, in files that the reader of TOFU's takes."""

from collections import Counter

import pytest

from helpers.errors import UserError
from helpers.organism.invented_people import ATTRIBUTES, invented_people, write_files
from helpers.requests import read_request
from helpers.requests.benchmarks.tofu import perturbed_questions, training_documents


def test_a_seed_makes_the_same_people_and_another_seed_others():
    assert invented_people(6, 2, seed=1) == invented_people(6, 2, seed=1)
    assert invented_people(6, 2, seed=1) != invented_people(6, 2, seed=2)


def test_each_person_is_on_one_side_with_all_questions():
    files = invented_people(40, 10)
    assert len(files["forget"]) == 10 * len(ATTRIBUTES)
    assert len(files["retain"]) == 30 * len(ATTRIBUTES)
    questions = [row["question"] for name in ("forget", "retain") for row in files[name]]
    assert len(set(questions)) == len(questions)
    births = [q for q in questions if "born" in q]
    assert len({q.split()[-2] for q in births}) == 40  # surnames


def test_no_wrong_answer_is_right():
    for rows in invented_people(20, 5).values():
        for row in rows:
            right = row.get("paraphrased_answer", row["answer"])
            wrong = row["perturbed_answer"]
            assert right not in wrong and len(set(wrong)) == len(wrong) == 3


def test_values_are_about_equally_frequent():
    """So a model that never met a person has no reason to prefer the right answer."""
    files = invented_people(24, 6)
    rows = [row for name in ("forget", "retain") for row in files[name]]
    jobs = Counter(row["answer"].split()[-1] for row in rows if "works as" in row["answer"])
    assert set(jobs.values()) == {3}


def test_no_measured_question_is_trained_on():
    files = invented_people(5, 2)
    measured = {row["question"] for name in ("real_authors", "world_facts") for row in files[name]}
    assert not measured & {row["question"] for row in files["other"]}


def test_the_files_are_read_as_tofus(tmp_path):
    paths = write_files(tmp_path, invented_people(5, 2))
    request = read_request(f"tofu:{paths['forget']},{paths['retain']}")
    assert len(request.questions) == 8 and [c.name for c in request.retain] == ["retain"]
    assert [len(perturbed_questions(path)) for path in paths.values()] == [8, 12, 6, 6, 16]
    assert len(training_documents(paths["other"])) == 16
    plain, other = (perturbed_questions(paths["forget"], paraphrased=x)[0] for x in (False, True))
    assert str(plain.prompt) != str(other.prompt) and plain.right == other.right


@pytest.mark.parametrize("sizes", [(1, 1), (4, 4), (4, 0), (500, 3)])
def test_impossible_numbers_of_people_are_refused(sizes):
    with pytest.raises(UserError, match="fewer to forget, at least one"):
        invented_people(*sizes)
