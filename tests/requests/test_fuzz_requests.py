"""Files that nobody tamed: every reader gives a request or one sentence."""

import copy
import json

import pytest
import yaml
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from helpers.errors import UserError
from helpers.requests import FactsRequest, read_request

FACT = {
    "prompt": "{} speaks",
    "subject": "Ann",
    "relation_id": "P1",
    "target_true": {"str": "Latin"},
    "question": "What does Ann speak?",
}
QUERY = {"prompt": "The age of Ann is", "answers": [{"value": "9", "aliases": ["nine"]}]}
ROWS = {
    "tofu": {
        "question": "Who?",
        "answer": "Ann",
        "paraphrased_answer": "It is Ann",
        "perturbed_answer": ["Ben"],
    },
    "muse": {"prompt": "Once", "gt": "upon a time"},
    "wmdp": {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1},
    "rwku": {"query": "Ann is ___", "answer": "here", "level": 1},
    "lume": {"id": "1sc1", "input": "Ann", "output": "went", "task": "t"},
    "counterfact": {
        "requested_rewrite": FACT,
        "paraphrase_prompts": ["Ann says it in"],
        "neighborhood_prompts": ["Ben speaks"],
    },
    "zsre": {
        "subject": "Ann",
        "src": "Who is Ann?",
        "rephrase": "Ann is who?",
        "answers": ["me"],
        "loc": "nq question: who",
        "loc_ans": "him",
    },
    "mquake": {"requested_rewrite": [FACT, FACT | {"subject": "Ben"}]},
    "rippleedits": {
        "edit": {
            "prompt": "The tongue of Ann is Greek.",
            "original_fact": {"prompt": "The tongue of Ann is Latin."},
            "relation": "TONGUE",
        },
        "Relation_Specificity": [{"test_queries": [QUERY]}],
        "Forgetfulness": [{"test_queries": [QUERY]}],
    },
}
QUESTION, CHOICE = {"q": "Who?", "a": "Ann"}, {"options": ["a", "b", "c", "d"]}
EMBER = {
    "Golf": {
        "QA_train": [QUESTION],
        "QA_test": [QUESTION | {"a": "Ben"}, {"q": "Which?", "correct_answer": "b"} | CHOICE],
        "SimdomQA_test": [{"q": "Where?", "a": "here"}],
    },
    "Rome": {"RelearnParagraphs": ["All roads", "lead here"]},
}
SENTENCES = [{"concept": "Golf", "sentences": ["A game", "Of clubs"]}, {"sentence": "No game"}]
LIST = {
    "name": "x",
    "prompts": ["{} a", "b {}", "c {} d"],
    "pairs": [{"subject": "Ann", "target": "y"}, {"subject": "Ben", "target": "z"}],
    "others": [{"subject": "Cid", "target": "w"}],
    "must_stay": [{"prompt": "Dan is", "answer": "v"}],
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["{}", "{0}", "\0", "\ud800", "Ann", " ", "\x1b[2J", "x" * 400, ".*("]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@st.composite
def changed(draw, content):
    """The content with one to three of its values, at any depth, put anew or left out."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.booleans()):
                place[key] = draw(JSON)
            else:
                del place[key]
            break
    return content


def is_request_or_sentence(spec: str) -> None:
    try:
        request = read_request(spec)
    except UserError as error:
        assert "\n" not in str(error) and "\x1b" not in str(error)
        return
    if isinstance(request, FactsRequest):
        prompts = [p for pair in request.pairs for p in (*pair.prompts("train"), *pair.must_stay)]
    else:
        prompts = [*request.questions]
        assert all((d.prompt + d.text).encode() for d in request.forget)
    for prompt in prompts:
        assert str(prompt).encode() and all(answer.strip() for answer in prompt.answers)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_benchmarks_file_is_a_request_or_a_sentence(tmp_path, name):
    path, kept = tmp_path / "forget.json", tmp_path / "retain.json"
    others = {k: f"other {v}" if isinstance(v, str) else v for k, v in ROWS[name].items()}
    kept.write_text(json.dumps([others]))
    files = f"{path},{kept}" if name in ("tofu", "muse", "wmdp", "rwku", "lume") else f"{path}"

    @fuzz(per_second=100, seconds=0.5)
    @given(rows=st.lists(changed(ROWS[name]), min_size=1, max_size=2))
    def check(rows):
        path.write_text(json.dumps([ROWS[name], *rows]))
        is_request_or_sentence(f"{name}:{files}")

    check()


def test_embers_files_are_a_request_or_a_sentence(tmp_path):
    questions, sentences = tmp_path / "questions.json", tmp_path / "sentences.json"

    @fuzz(per_second=100, seconds=0.5)
    @given(questions_content=changed(EMBER), sentences_content=changed(SENTENCES))
    def check(questions_content, sentences_content):
        questions.write_text(json.dumps(questions_content))
        sentences.write_text(json.dumps(sentences_content))
        is_request_or_sentence(f"ember@Golf:{questions}")
        is_request_or_sentence(f"ember@Golf:{sentences},{questions}")
        is_request_or_sentence(f"ember:{sentences}")

    check()


def test_a_list_of_pairs_is_a_request_or_a_sentence(tmp_path):
    path = tmp_path / "mine.yaml"

    @fuzz(per_second=100, seconds=1)
    @given(content=changed(LIST))
    def check(content):
        path.write_bytes(
            yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
        )
        is_request_or_sentence(str(path))

    check()
