"""TOFU's figures against calculations by hand, and under attack."""

import json
from statistics import harmonic_mean

import numpy as np
import pandas as pd
import pytest

from helpers.errors import UserError
from helpers.evaluation.metrics.truth_ratio import forget_quality
from helpers.evaluation.tofu_attacks import against_retrained, tofu_attacks, worst_attack
from helpers.evaluation.tofu_scores import (
    answer_scores,
    model_utility,
    paired_difference,
    rouge_l_recall,
    tofu_scores,
)
from helpers.forward.scoring import answer_logprobs
from helpers.models import model_hash
from helpers.requests import Corpus
from helpers.requests.benchmarks.tofu import perturbed_questions

ROW = {
    "question": "w1 w2",
    "answer": "w9 w3",
    "paraphrased_question": "w2 w1",
    "paraphrased_answer": "w3 w4",
    "perturbed_answer": ["w5", "w6 w7 w8"],
}


@pytest.fixture
def paths(tmp_path):
    """Small files by TOFU's names, with two questions each."""
    files = {}
    for name in ("forget", "retain", "real_authors", "world_facts"):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps([ROW, ROW | {"answer": "w11"}]))
    return files


@pytest.mark.parametrize(
    ("answer", "reference", "recall"),
    [
        ("Ann was born in Rome.", "Ann was born in Rome.", 1),
        ("She was BORN there, in Rome", "Ann was born in Rome", 4 / 5),
        ("Rome in born was Ann", "Ann was born in Rome", 1 / 5),
        ("in Rome", "Ann was born in Rome", 2 / 5),
        ("", "Rome", 0),
    ],
)
def test_rouge_is_the_longest_common_subsequence_over_the_reference(answer, reference, recall):
    assert rouge_l_recall(answer, reference) == pytest.approx(recall)


def test_a_reference_without_words_is_refused():
    with pytest.raises(UserError, match="without a word"):
        rouge_l_recall("Rome", "...")


def test_probability_and_truth_ratio_by_hand(tiny_model, paths):
    model, questions = tiny_model(), perturbed_questions(paths["forget"])
    answers = [" w9 w3", " w3 w4", " w5", " w6 w7 w8"]
    sums = answer_logprobs(model, [questions[0].prompt] * 4, answers)
    a_token = np.exp(sums / [2, 2, 1, 3])
    row = answer_scores(model, questions).iloc[0]
    assert row["probability"] == pytest.approx(a_token[0], rel=1e-4)
    assert row["truth_ratio"] == pytest.approx(
        np.sqrt(a_token[2] * a_token[3]) / a_token[1], rel=1e-4
    )
    choice = answer_scores(model, questions, is_choice=True).iloc[0]
    right = a_token[0] / (a_token[0] + a_token[2] + a_token[3])
    assert choice["probability"] == pytest.approx(right, rel=1e-4)


def test_utility_is_the_harmonic_mean_of_what_must_stay():
    scores = pd.DataFrame(
        [
            ("forget", 0.9, 0.1, 0.9),
            ("retain", 0.5, 0.5, 0.8),
            ("retain", 0.7, 1.5, 0.6),
            ("world_facts", 0.4, 0.2, 0.25),
        ],
        columns=["file", "probability", "truth_ratio", "rouge"],
    )
    by_hand = harmonic_mean([0.6, 0.25, 0.7, 0.4, 0.8, 0.25])
    assert model_utility(scores) == pytest.approx(by_hand)
    lost = scores.assign(rouge=0.0)
    assert model_utility(lost) == 0


def test_forget_quality_by_hand():
    """Of two samples of four that do not overlap, 2 of 70 orders are as extreme."""
    assert forget_quality([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx(2 / 70)
    assert forget_quality([1, 2, 3, 4], [1, 2, 3, 4]) == 1


def test_equal_distributions_can_differ_in_every_question():
    """What forget quality does not see, and a paired comparison does."""
    ours = pd.DataFrame({"truth_ratio": np.exp(np.linspace(0, 1, 12)), "probability": 0.5})
    theirs = ours.assign(truth_ratio=ours["truth_ratio"] * np.exp(-0.1), probability=0.5)
    assert forget_quality(ours["truth_ratio"], theirs["truth_ratio"]) > 0.5
    difference = paired_difference(ours, theirs, "truth_ratio")
    assert difference.low == pytest.approx(0.1) and difference.high == pytest.approx(0.1)


def test_every_file_is_scored_and_answered(tiny_model, paths):
    scores = tofu_scores(tiny_model(), paths)
    assert scores["file"].value_counts().to_dict() == dict.fromkeys(paths, 2)
    fewer = tofu_scores(tiny_model(), paths, n_kept=1)
    assert fewer["file"].value_counts().to_dict() == dict.fromkeys(paths, 1) | {"forget": 2}
    assert scores["rouge"].between(0, 1).all() and scores["said"].str.len().gt(0).all()
    assert 0 <= model_utility(scores) <= 1


def test_attacks_restore_the_model_and_are_compared_with_the_retrained_one(tiny_model, paths):
    model = tiny_model()
    retain = Corpus.of_prompts("retain", [q.prompt for q in perturbed_questions(paths["retain"])])
    before = model_hash(model)
    table = tofu_attacks(model, paths["forget"], retain, steps=2)
    assert model_hash(model) == before
    assert set(table["attack"]) == {"none", "other words", "int8", "int4", "relearning"}
    by_attack = table.groupby("attack")["probability"].mean()
    assert by_attack["relearning"] > by_attack["none"]  # the same words are learned here
    assert by_attack["other words"] != by_attack["none"]
    both = pd.concat(
        [table.assign(model="unlearned"), table.assign(model="retrained", probability=0.0)]
    )
    compared = against_retrained(both, "retrained")
    assert len(compared) == 10 and (compared["forget_quality"] == 1).all()
    name, difference = worst_attack(compared, "unlearned")
    assert name == by_attack.idxmax() and difference.value == pytest.approx(by_attack.max())
    with pytest.raises(UserError, match="attack"):
        tofu_attacks(model, paths["forget"], retain, attacks=["int3"])
