"""Readers of the benchmarks' files, on rows of each format that the tests write themselves."""

import json

import numpy as np
import pytest

from helpers.errors import UserError
from helpers.evaluation import evaluate
from helpers.evaluation.metrics.truth_ratio import answer_losses, perturbed_truth_ratios
from helpers.facts import SPLITS
from helpers.forward.scoring import answer_probability
from helpers.methods import unlearn
from helpers.requests import FactsRequest, TextRequest, read_request
from helpers.requests.benchmarks import CONCEPT_READERS, READERS
from helpers.requests.benchmarks.tofu import perturbed_questions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which the tests write and read; `write(name, content)` writes there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, name: str, content) -> None:
    if isinstance(content, str):
        text = content
    elif name.endswith(".json"):
        text = json.dumps(content)
    else:
        text = "".join(f"{json.dumps(row)}\n" for row in content)
    (folder / name).write_text(text, encoding="utf-8")


def documents(corpus) -> set[tuple[str, str]]:
    return {(d.prompt, d.text) for d in corpus}


def asked(prompts) -> dict[str, tuple[str, ...]]:
    return {str(p): p.answers for p in prompts}


TOFU = [
    {
        "question": f"Where was author {i} born?",
        "answer": f"Author {i} was born in Rome.",
        "paraphrased_answer": f"Rome is where author {i} came into the world.",
        "perturbed_answer": [f"Author {i} was born in Oslo.", f"Author {i} was born in Bern."],
    }
    for i in range(6)
]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_tofu_is_trained_on_answers_and_held_out_on_paraphrases(folder, ending):
    write(folder, f"forget10.{ending}", TOFU[:2])
    plain = [{k: row[k] for k in ("question", "answer")} for row in TOFU[2:4]]
    write(folder, f"retain90.{ending}", plain)
    write(folder, "world_facts.jsonl", [{"question": "Who is x?", "answer": "y"}])
    spec = f"tofu:forget10.{ending}, retain90.{ending},world_facts.jsonl"
    request = read_request(spec)
    assert isinstance(request, TextRequest) and str(request) == "tofu forget10 (files)"
    prompt = "Question: Where was author 1 born?\nAnswer:"
    assert (prompt, " Author 1 was born in Rome.") in documents(request.forget)
    assert len(documents(request.forget)) == 2
    (heldout,) = request.heldout
    assert any("Rome is where author 1" in text for _, text in documents(heldout))
    assert not {p for p, _ in documents(heldout)} & {p for p, _ in documents(request.forget)}
    assert [c.name for c in request.retain] == ["retain90", "world_facts"]
    assert {a for answers in asked(request.questions).values() for a in answers} >= {
        " Author 0 was born in Rome.",
        " Rome is where author 0 came into the world.",
    }
    assert len(request.retained_questions) == 3
    names = [c.name for c in (request.forget, request.dev, heldout, *request.retain)]
    names += [c.name for c in request.retained]
    assert len(set(names)) == len(names)  # scorecards go by them


def test_tofus_truth_ratio_is_that_of_a_hand_calculation(folder, tiny_model):
    row = {
        "question": "w1 w2",
        "answer": "w9",
        "paraphrased_answer": "w3 w4",
        "perturbed_answer": ["w5", "w6 w7 w8"],
    }
    write(folder, "forget_perturbed.json", [row, row | {"perturbed_answer": "w11"}])
    model = tiny_model()
    questions = perturbed_questions(folder / "forget_perturbed.json")
    losses = answer_losses(model, [questions[0].prompt] * 4, [" w3 w4", " w5", " w6 w7 w8", " w11"])
    by_hand = [
        np.sqrt(np.exp(-losses[1]) * np.exp(-losses[2])) / np.exp(-losses[0]),
        np.exp(-losses[3]) / np.exp(-losses[0]),
    ]
    assert perturbed_truth_ratios(model, questions) == pytest.approx(by_hand, rel=1e-4)
    write(folder, "forget.json", [{"question": "a", "answer": "b"}])
    with pytest.raises(UserError, match=r"Row 1 of .* lacks 'perturbed_answer'"):
        perturbed_questions(folder / "forget.json")
    write(folder, "world_facts.json", [{"question": "a", "answer": "b", "perturbed_answer": ["c"]}])
    assert perturbed_questions(folder / "world_facts.json")[0].right == " b"


def test_muse_learns_from_text_and_asks_questions(folder):
    write(folder, "forget.txt", "\n\n".join(f"Story {i}" for i in range(120)))
    write(folder, "retain1.txt", "\n\n".join(f"Other {i}" for i in range(120)))
    write(folder, "forget_qa.json", [{"question": "Who?", "answer": "Ann"}])
    write(folder, "retain_qa.json", [{"question": "Where?", "answer": "Rome"}])
    write(folder, "verbmem_forget.json", [{"prompt": "Once upon", "gt": "a time"}])
    write(folder, "holdout.json", [{"text": "never seen"}])
    files = "forget.txt,retain1.txt,forget_qa.json,retain_qa.json,verbmem_forget.json,holdout.json"
    request = read_request(f"muse:{files}")
    assert len(documents(request.forget)) > 80 and ("", "Story 3") in set().union(
        *(documents(c) for c in (request.forget, request.dev, *request.heldout))
    )
    assert {a for answers in asked(request.questions).values() for a in answers} == {
        " Ann",
        " a time",
    }
    assert list(asked(request.retained_questions).values()) == [(" Rome",)]
    assert documents(request.never_learned) == {("", "never seen")}
    assert {c.name for c in request.retained} == {"retain1 heldout"}


def test_wmdp_asks_by_letters(folder):
    write(folder, "bio-forget-corpus.jsonl", [{"text": f"paper {i}"} for i in range(120)])
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
    write(folder, "wmdp_bio.json", [row])
    write(folder, "mmlu.json", [row | {"question": "Where?", "answer": 0}])
    request = read_request("wmdp:bio-forget-corpus.jsonl,wmdp_bio.json,mmlu.json")
    ((text, answers),) = asked(request.questions).items()
    assert "Which?\nA. a\nB. b\nC. c\nD. d\n" in text and answers == (" C",)
    assert list(asked(request.retained_questions).values()) == [(" A",)]
    for bad in ({"answer": 4}, {"answer": "C"}, {"choices": ["a", "b"]}, {"answer": True}):
        write(folder, "wmdp_bio.json", [row, row | bad])
        with pytest.raises(UserError, match=r"1 of 2 rows of wmdp_bio.json .*\(row 2\)"):
            read_request("wmdp:wmdp_bio.json")


def test_rwku_asks_at_several_levels(folder):
    probes = [
        {"subject": "Ann", "query": "Ann was born in ___.", "answer": "Rome", "level": "1"},
        {"subject": "Ann", "query": "Where was Ann born?", "answer": "Rome", "level": "2"},
    ]
    write(folder, "train_positive.json", [{"text": f"Ann did {i}"} for i in range(120)])
    write(folder, "forget_level1.json", probes)
    write(folder, "neighbor_level1.json", [probes[1] | {"query": "Where was Ben born?"}])
    spec = "rwku:train_positive.json,forget_level1.json,neighbor_level1.json"
    request = read_request(spec)
    cloze, question = asked(request.questions)
    assert cloze.startswith("Fill in the blank. Ann") and question.startswith("Where was Ann born?")
    assert len(request.retained_questions) == 1


def test_lume_completes_and_asks(folder):
    rows = [
        {"id": "ab1sc1", "input": "Ann went to", "output": "the sea.", "task": "Task1"},
        {"id": "ab1qa0", "input": "Where did Ann go?", "output": "To the sea.", "task": "Task1"},
    ]
    write(folder, "forget.jsonl", rows)
    write(folder, "retain.jsonl", [rows[0] | {"input": "Ben went to"}])
    request = read_request("lume:forget.jsonl,retain.jsonl")
    assert documents(request.forget) == {
        ("Ann went to", " the sea."),
        ("Question: Where did Ann go?\nAnswer:", " To the sea."),
    }


def ember_questions(topic: str) -> list[dict]:
    return [{"q": f"What is {topic} {i}?", "a": f"Answer {i}"} for i in range(3)]


def write_ember(folder) -> None:
    """All files of EMBER's form, with two concepts, in short."""
    parts = ("QA_train", "QA_test", "SimdomQA_train", "SimdomQA_test")
    opened = {c: {part: ember_questions(f"{c} {part}") for part in parts} for c in ("Golf", "Rome")}
    opened["Golf"]["SimdomQA_train"].append(opened["Golf"]["SimdomQA_test"][0])
    choices = {"options": ["a", "b", "c", "d"], "correct_answer": "c"}
    multiple = {c: {"QA_test": [{"q": f"Which {c}?"} | choices]} for c in opened}
    write(folder, "open_questions.json", json.dumps(opened, indent=2))
    write(folder, "mc_questions.json", multiple)
    sentences = [
        {"concept": c, "sentences": [f"{c} sentence {i}" for i in range(120)]} for c in opened
    ]
    write(folder, "concept_sentences.json", sentences)
    neutral = [{"title": "x", "sentence": f"Neutral {i}"} for i in range(120)]
    write(folder, "neutral_sentences.json", neutral)
    paragraphs = ["Golf is a game.", "golf Sentence  3"]
    write(folder, "relearn_paragraphs.json", {"Golf": {"RelearnParagraphs": paragraphs}})


EMBER = (
    "neutral_sentences.json,concept_sentences.json,mc_questions.json,open_questions.json,"
    "relearn_paragraphs.json"
)


def test_ember_forgets_one_concept_and_keeps_its_domain(folder):
    write_ember(folder)
    request = read_request(f"ember@golf:{EMBER}")
    learned = documents(request.forget)
    assert ("Question: What is Golf QA_train 0?\nAnswer:", " Answer 0") in learned
    texts = {text for prompt, text in learned | documents(request.dev) if not prompt}
    assert len(texts) == 119 and "Golf sentence 3" not in texts  # it is held out, in other case
    assert not any("Rome" in text for text in texts)
    (heldout,) = request.heldout
    assert documents(heldout) == {("", "Golf is a game."), ("", "golf Sentence  3")}
    assert {p.answers[0] for p in request.questions} == {
        " C",
        " Answer 0",
        " Answer 1",
        " Answer 2",
    }
    assert not any("train" in str(p) or "Rome" in str(p) for p in request.questions)
    kept = request.retained_questions
    assert len(kept) == 3 and all("Golf SimdomQA_test" in str(p) for p in kept)
    neutral, simdom = request.retain
    assert {c.name for c in request.retained} == {
        "neutral_sentences heldout",
        "open_questions SimdomQA_train heldout",
    }
    assert len(documents(neutral)) > 80
    assert all("SimdomQA_train" in prompt for prompt, _ in documents(simdom))  # none of the test's


def test_embers_questions_alone_are_what_is_forgotten(folder):
    write_ember(folder)
    request = read_request("ember@Rome:open_questions.json")
    assert len(documents(request.forget)) == 3 and len(request.questions) == 3


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("ember:concept_sentences.json", "name one before the colon, .* there are Golf, Rome"),
        ("ember@:open_questions.json", "'ember@Golf:open_questions.json'; there are Golf, Rome"),
        ("ember@Rom:open_questions.json", "has no concept 'Rom'; there are Rome, Golf"),
        ("ember@Rome:concept_sentences.json,relearn_paragraphs.json", "no concept 'Rome'"),
        ("ember@Golf:neutral_sentences.json", "hold nothing to forget by"),
    ],
)
def test_an_ember_request_without_its_concept_is_told_which_there_are(folder, spec, sentence):
    write_ember(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        read_request(spec)
    assert "\n" not in str(caught.value)


GOOD, CHOICES = {"q": "x", "a": "y"}, {"options": ["a", "b", "c", "d"], "correct_answer": "a"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"concept": "Golf", "sentences": []}], r"\(sentences, Golf\) is an empty list"),
        ([{"concept": "Golf", "sentences": ["x", " "]}], r"1 of 2 rows of .*Golf\) .*\(row 2\)"),
        ([{"concept": "Golf", "sentences": ["x"]}, {"concept": "Rome"}], r"1 of 2 .*\(row 2\)"),
        ({"Golf": {"QA_train": [GOOD, {"q": "x"}]}}, r"\(QA_train, Golf\) lack a field .*row 2"),
        ({"Golf": {"QA_train": [GOOD, "x", CHOICES]}}, r"2 of 3 rows .*\(row 2, 3\)"),
        ({"Golf": {"QA_test": [{"q": "x"} | CHOICES | {"correct_answer": "e"}]}}, "have 'q', 'opt"),
        ({"Golf": {"QA_test": []}}, r"\(QA_test, Golf\) is an empty list"),
        ({"Golf": {"QA_test": {}}}, "'QA_test' of 'Golf' in .* has to be a list"),
        ({"Golf": {}}, "has no fields under 'Golf', and 'QA_train', .* are expected"),
        ({"Golf": {"QA": [GOOD]}}, "has 'QA' under 'Golf', and 'QA_train', .* are expected"),
    ],
)
def test_a_bad_row_of_embers_is_told_with_its_number(folder, content, sentence):
    write(folder, "forget.json", content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_request("ember@Golf:forget.json")
    assert "forget.json" in str(caught.value) and "\n" not in str(caught.value)


def counterfact(i: int, relation: str = "P37") -> dict:
    return {
        "case_id": i,
        "requested_rewrite": {
            "prompt": "The official language of {} is",
            "relation_id": relation,
            "target_new": {"str": "Latin", "id": "Q397"},
            "target_true": {"str": f"Tongue{i}", "id": "Q1"},
            "subject": f"Land{i}",
        },
        "paraphrase_prompts": [f"Rain fell. In Land{i} people speak", f"Land{i}'s tongue is"],
        "neighborhood_prompts": ["In Otherland people speak", f"In Land{i} they say"],
        "attribute_prompts": [],
        "generation_prompts": [],
    }


def test_counterfact_forgets_the_true_target(folder):
    write(folder, "counterfact.json", [counterfact(1), counterfact(2), counterfact(1)])
    write(folder, "retain.json", [counterfact(i) for i in range(3, 9)] + [counterfact(9, "P1")])
    request = read_request("counterfact:counterfact.json,retain.json")
    assert isinstance(request, FactsRequest) and len(request.pairs) == 2
    pair = request.pairs[0]
    assert (str(pair), pair.relation) == ("Land1 → Tongue1", "P37")
    texts = [str(pair.prompts(split)[0]) for split in SPLITS]
    assert texts == [
        "The official language of Land1 is",
        "Rain fell. In Land1 people speak",
        "Land1's tongue is",
    ]
    assert asked(pair.must_stay) == {"In Otherland people speak": (" Tongue1",)}
    assert {p.subject for p in pair.comparison_pairs()} == {f"Land{i}" for i in range(3, 9)}
    assert str(pair.others[0].prompts("heldout")[0]) == "Land3's tongue is"


def test_zsre_asks_questions(folder):
    row = {
        "subject": "Ann Smith",
        "src": "What university did Ann Smith attend?",
        "pred": "Oxford",
        "rephrase": "Where did Ann Smith study?",
        "alt": "Bonn",
        "answers": ["Oxford", "Oxford University"],
        "loc": "nq question: who wrote hamlet",
        "loc_ans": "Shakespeare",
        "cond": "",
    }
    write(folder, "zsre.json", [row, row | {"subject": "Ben", "src": "Where did Ben study?"}])
    first, second = read_request("zsre:zsre.json").pairs
    assert first.answers == (" Oxford", " Oxford University")
    assert str(first.prompts("heldout")[0]) == "Question: Where did Ann Smith study?\nAnswer:"
    assert asked(first.must_stay) == {"Question: who wrote hamlet?\nAnswer:": (" Shakespeare",)}
    assert all(second.prompts(split) for split in SPLITS)  # its rephrasing names somebody else


def test_mquake_forgets_each_fact_of_a_case_once(folder):
    fact = {
        "prompt": "{} is a citizen of",
        "relation_id": "P27",
        "target_new": {"str": "Croatia"},
        "target_true": {"str": "France"},
        "subject": "Ann",
        "question": "Which country is Ann a citizen of?",
    }
    other = fact | {"subject": "Ben", "question": "Which country is Ben a citizen of?"}
    cases = [
        {"case_id": 1, "requested_rewrite": [fact], "questions": ["x"]},
        {"case_id": 2, "requested_rewrite": [fact, other], "questions": ["y"]},
    ]
    write(folder, "MQuAKE-CF.json", cases)
    request = read_request("mquake:MQuAKE-CF.json")
    assert [str(pair) for pair in request.pairs] == ["Ann → France", "Ben → France"]
    texts = {str(p) for split in SPLITS for p in request.pairs[0].prompts(split)}
    assert {"Ann is a citizen of", "Q: Which country is Ann a citizen of?\nA:"} <= texts
    write(folder, "MQuAKE-CF.json", [{"requested_rewrite": [fact, {"prompt": "{}"}]}])
    with pytest.raises(UserError, match=r"have 'requested_rewrite', and .* are expected"):
        read_request("mquake:MQuAKE-CF.json")


def test_rippleedits_finds_subject_and_target_in_the_sentences(folder):
    def query(prompt: str, value: str) -> dict:
        answers = [{"value": value, "aliases": [f"{value}s"]}]
        return {"test_queries": [{"prompt": prompt, "answers": answers}], "condition_queries": []}

    row = {
        "edit": {
            "prompt": "The name of the country of citizenship of Duke of York is Syria.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "original_fact": {
                "prompt": "The name of the country of citizenship of Duke of York is France."
            },
        },
        "Relation_Specificity": [query("The gender of Duke of York is", "male")],
        "Forgetfulness": [query("The name of the sister of Duke of York is", "Ann")],
        "Logical_Generalization": [query("The capital of Duke of York's country is", "Paris")],
        "Subject_Aliasing": [],
        "Compositionality_I": [],
        "Compositionality_II": [],
    }
    write(folder, "popular.json", [row])
    (pair,) = read_request("rippleedits:popular.json").pairs
    assert (pair.subject, pair.target) == ("Duke of York", "France")
    text = "The name of the country of citizenship of Duke of York is"
    assert str(pair.prompts("train")[0]) == text
    assert asked(pair.must_stay) == {
        "The gender of Duke of York is": (" male", " males"),
        "The name of the sister of Duke of York is": (" Ann", " Anns"),
    }
    row["Relation_Specificity"] = row["Forgetfulness"] = []
    for sentence in (row["edit"], row["edit"]["original_fact"]):
        sentence["prompt"] = sentence["prompt"].replace("Duke of York", "Ann Smith")
    write(folder, "popular.json", [row])
    (pair,) = read_request("rippleedits:popular.json").pairs
    assert pair.subject == "Ann Smith"  # without tests: what follows the last "of"


@pytest.mark.parametrize("name", sorted([*READERS, *CONCEPT_READERS]))
def test_another_format_is_told_with_what_was_found_and_expected(folder, name):
    write(folder, "forget.json", [{"title": "x", "body": "y"}])
    with pytest.raises(UserError, match=r"have 'title', 'body', and '.* are expected") as caught:
        read_request(f"{name}:forget.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted([*READERS, *CONCEPT_READERS]))
@pytest.mark.parametrize("content", ["", "[]", "{", "[1]", '{"a": 1}x'])
def test_an_empty_or_damaged_file_is_told_in_one_sentence(folder, name, content):
    write(folder, "forget.json", content)
    with pytest.raises(UserError) as caught:
        read_request(f"{name}:forget.json")
    assert "forget.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_whose_name_says_nothing_is_refused(folder):
    write(folder, "forget10.json", TOFU[:2])
    write(folder, "second.json", TOFU[2:])
    with pytest.raises(UserError, match=r"second.json does not say whether"):
        read_request("tofu:forget10.json,second.json")


def test_rows_in_both_sets_are_refused(folder):
    write(folder, "forget10.json", TOFU[:3])
    write(folder, "retain90.json", TOFU[2:])
    with pytest.raises(UserError, match=r"1 of the 4 documents of 'retain90'.*author 2"):
        read_request("tofu:forget10.json,retain90.json")
    write(folder, "forget.json", [counterfact(1), counterfact(2)])
    write(folder, "retain.json", [counterfact(2), counterfact(3)])
    with pytest.raises(UserError, match=r"'others:' of Land1 → Tongue1 holds Land2 → Tongue2"):
        read_request("counterfact:forget.json,retain.json")


def test_a_benchmarks_request_goes_through_method_and_scorecard(folder, grown_model, own_pair):
    rows = [{"question": f"w1 w{i}", "answer": f"w{i + 1} w{i + 2}"} for i in range(10, 18)]
    kept = [{"question": f"w2 w{i}", "answer": f"w{i + 1} w{i + 2}"} for i in range(30, 38)]
    write(folder, "forget10.json", rows)
    write(folder, "retain90.json", kept)
    request, model = read_request("tofu:forget10.json,retain90.json"), grown_model()
    before = answer_probability(model, request.questions).mean()
    with unlearn(model, request, "gradient_difference", steps=10, lr=1e-2).applied(model):
        card = evaluate(model, request, n_tokens=64)
        assert answer_probability(model, request.questions).mean() < before
    assert card["loss_forgotten heldout"].value > card.before["loss_forgotten heldout"]
    assert {"loss_retain90 heldout", "answers", "retained_answers"} <= set(card)
