"""Scores of a user's benchmark files against calculations by hand, on files of each format."""

import json

import numpy as np
import pytest

from helpers.errors import UserError
from helpers.evaluation import benchmark_scores as module
from helpers.evaluation.benchmark_scores import benchmark_of, benchmark_scores, compared
from helpers.evaluation.tofu_scores import model_utility, tofu_scores
from helpers.forward.scoring import answer_logprobs

QUESTION = {"question": "w1 w2", "answer": "w9 w3"}
TOFU = QUESTION | {
    "paraphrased_answer": "w3 w4",
    "perturbed_answer": ["w5", "w6 w7 w8"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which the tests write and read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, **files):
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))


@pytest.fixture
def say(monkeypatch):
    """`say(*texts)` lets every model generate these texts, in turn."""

    def generate(*texts):
        monkeypatch.setattr(
            module, "greedy", lambda model, prompts, **_: [texts[i] for i in range(len(prompts))]
        )

    return generate


def values(table, test, figure):
    rows = table[(table["test"] == test) & (table["figure"] == figure)]
    return rows["value"].tolist()


def test_tofu_has_the_figures_of_the_chapter_and_its_utility(folder, tiny_model):
    names = ("forget", "retain", "real_authors", "world_facts")
    for i, name in enumerate(names):
        write(folder, **{name: [TOFU | {"question": f"w{i} w{k}"} for k in range(3)]})
    table = benchmark_scores(tiny_model(), f"tofu:{','.join(f'{n}.json' for n in names)}")
    expected = tofu_scores(tiny_model(), {n: folder / f"{n}.json" for n in names})
    for name in names:
        of_file = expected[expected["file"] == name]
        assert values(table, name, "truth ratio") == pytest.approx(of_file["truth_ratio"].tolist())
        assert values(table, name, "P(answer) a token") == pytest.approx(
            of_file["probability"].tolist()
        )
    assert set(table[table["must"] == "go"]["test"]) == {"forget"}
    utility = table[table["figure"] == "model utility"]["value"].item()
    assert utility == pytest.approx(model_utility(expected), abs=1e-3)


def test_a_plain_tofu_file_has_the_figures_that_need_no_wrong_answers(folder, tiny_model, say):
    write(folder, forget10=[QUESTION, QUESTION | {"question": "w3 w4"}])
    say("w9 w3\nmore", "w3")
    table = benchmark_scores(tiny_model(), "tofu:forget10.json")
    assert set(table["figure"]) == {"P(answer) a token", "ROUGE-L recall"}
    assert values(table, "forget10", "ROUGE-L recall") == [1, 0.5]


def test_generated_answers_are_scored_as_each_benchmark_does(folder, tiny_model, say):
    say("w9 w3 w4", "w9 w3")
    write(folder, forget=[QUESTION, QUESTION | {"question": "w5"}])
    muse = benchmark_scores(tiny_model(), "muse:forget.json")
    assert values(muse, "forget", "ROUGE-L F1") == pytest.approx([4 / 5, 1])
    write(folder, forget=[{"id": f"a{i}qa0", "input": f"w{i}", "output": "w9 w3"} for i in (1, 2)])
    lume = benchmark_scores(tiny_model(), "lume:forget.json")
    assert values(lume, "forget", "exact match") == [0, 1]
    write(folder, forget=[{"query": f"w{i}", "answer": "w9 w3"} for i in (1, 2)])
    rwku = benchmark_scores(tiny_model(), "rwku:forget.json")
    assert values(rwku, "forget", "ROUGE-L recall") == [1, 1]


def test_choices_are_scored_by_the_likeliest_letter(folder, tiny_model, monkeypatch):
    def prefers_c(model, prompts, answers):
        return np.array([float(answer == " C") for answer in answers])

    monkeypatch.setattr(module, "answer_logprobs", prefers_c)
    row = {"question": "w1", "choices": ["w1", "w2", "w3", "w4"], "answer": 2}
    write(folder, wmdp_bio=[row, row | {"question": "w2", "answer": 0}])
    write(folder, mmlu=[row | {"question": "w3"}])
    table = benchmark_scores(tiny_model(), "wmdp:wmdp_bio.json,mmlu.json")
    assert table["must"].tolist() == ["go", "go", "stay"]
    assert table["value"].tolist() == [1, 0, 1]


def test_counterfact_compares_the_true_target_with_the_new_one(folder, tiny_model):
    row = {
        "requested_rewrite": {
            "prompt": "{} w2",
            "subject": "w1",
            "relation_id": "P1",
            "target_true": {"str": "w3"},
            "target_new": {"str": "w4"},
        },
        "paraphrase_prompts": ["w5 w1 w6"],
        "neighborhood_prompts": ["w7 w2"],
    }
    write(folder, cf=[row])
    model = tiny_model()
    table = benchmark_scores(model, "counterfact:cf.json").set_index("test")
    assert table["must"].to_dict() == {"the fact": "go", "paraphrases": "go", "neighbours": "stay"}
    for test, prompt in (("the fact", "w1 w2"), ("neighbours", "w7 w2")):
        true, new = answer_logprobs(model, [prompt] * 2, [" w3", " w4"])
        assert table.loc[test, "value"] == float(true > new)


def test_several_hops_and_ripples_are_scored_by_what_is_said(folder, tiny_model, say):
    fact = {
        "prompt": "{} w2",
        "relation_id": "P1",
        "target_true": {"str": "w3"},
        "subject": "w1",
        "question": "w1 w2?",
    }
    hops = [{"question": "w1 w2?", "answer": "w3"}, {"question": "w3 w4?", "answer": "w5"}]
    row = {"requested_rewrite": [fact], "questions": ["w1 w2 w4?"], "answer": "w5"}
    write(folder, mquake=[row | {"answer_alias": ["w6"], "single_hops": hops}])
    say("it is w6")
    table = benchmark_scores(tiny_model(), "mquake:mquake.json").set_index("test")
    assert table["value"].to_dict() == {"several hops": 1, "the fact": 0, "other hops": 0}
    assert table["must"].to_dict() == {"several hops": "go", "the fact": "go", "other hops": "stay"}
    query = {"prompt": "w7 of w1 is", "answers": [{"value": "w8", "aliases": ["w9"]}]}
    original = {"prompt": "w2 of w1 is w3."}
    row = {"edit": {"prompt": "w2 of w1 is w4.", "relation": "R", "original_fact": original}}
    row |= {"Relation_Specificity": [{"test_queries": [query]}], "Subject_Aliasing": []}
    write(folder, popular=[row | {"Logical_Generalization": [{"test_queries": [query]}]}])
    say("w9 w3")
    table = benchmark_scores(tiny_model(), "rippleedits:popular.json").set_index("test")
    assert table["value"].to_dict() == {"the fact": 1, "Relation_Specificity": 1}


def test_zsre_counts_right_tokens(folder, tiny_model):
    row = {"subject": "w1", "src": "w2 w1?", "rephrase": "w3 w1?", "answers": ["w4 w5"]}
    write(folder, zsre=[row | {"loc": "nq question: w6", "loc_ans": "w7"}])
    table = benchmark_scores(tiny_model(), "zsre:zsre.json")
    assert table["test"].tolist() == ["the question", "paraphrases", "unrelated questions"]
    assert set(table["value"]) <= {0.0, 0.5, 1.0}


def test_models_stand_side_by_side_with_intervals(folder, tiny_model, say):
    write(folder, forget=[QUESTION | {"question": f"w{i}"} for i in range(30)])
    say(*["w9 w3"] * 30)
    known = benchmark_scores(tiny_model(), "muse:forget.json", n_questions=5)
    assert known["question"].tolist() == [0, 1, 2, 3, 4]
    say(*["w1"] * 30)
    table = compared(
        {
            "original": known,
            "edited": benchmark_scores(tiny_model(), "muse:forget.json", n_questions=5),
        }
    )
    assert table["n"].tolist() == [5] and table["original"][0].startswith("1.")
    assert table["edited"][0].startswith("0")
    assert np.all(table["must"] == "go")


@pytest.mark.parametrize("spec", ["mine.yaml", ""])
def test_a_file_of_ones_own_has_no_benchmarks_scores(tiny_model, spec):
    assert benchmark_of(spec) == ""
    with pytest.raises(UserError, match=r"no benchmark's scores.*tofu"):
        benchmark_scores(tiny_model(), spec)


def test_the_name_of_a_benchmark_is_read_in_any_case():
    assert benchmark_of("TOFU:a.json") == "tofu" and benchmark_of("ember@Golf:a.json") == "ember"
