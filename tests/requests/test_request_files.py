"""Requests from a user's own files: lists of pairs, JSON rows and plain text."""

import json
import re
import tracemalloc
from pathlib import Path

import pytest
import yaml

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.facts import SPLITS
from helpers.requests import FactsRequest, TextRequest, read_request
from helpers.requests.rows import read_lines

NAMES = {
    "name": "school",
    "prompts": ["{} is called", "Miss {}", "Her name is {}"],
    "others": [{"subject": "Harry", "target": "Potter"}, {"subject": "Ron", "target": "Weasley"}],
    "must_stay": {"prompt": "The headmaster is", "answer": "Dumbledore"},
    "pairs": [
        {"subject": "Hermione", "target": "Granger"},
        {
            "subject": "Luna",
            "target": "Lovegood",
            "prompts": ["a {}", "b {}", "c {}"],
            "must_stay": [{"prompt": "Luna reads the", "answer": "Quibbler"}],
        },
    ],
}


@pytest.fixture
def write(tmp_path):
    """`write(name, content)` -> path: rows as JSON lines, a mapping as YAML, text as it is."""

    def written(name: str, content) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        elif isinstance(content, list):
            path.write_text("".join(f"{json.dumps(row)}\n" for row in content))
        else:
            path.write_text(yaml.safe_dump(content))
        return str(path)

    return written


def paragraphs(n: int, word: str = "text") -> str:
    return "\n\n".join(f"{word} number {i}" for i in range(n))


def texts(corpus) -> list[str]:
    return [f"{d.prompt}|{d.text}" for d in corpus]


def test_a_list_of_pairs_shares_what_stands_beside_it(write):
    request = read_request(write("mine.yaml", NAMES))
    assert isinstance(request, FactsRequest)
    assert (request.name, request.kind, len(request.pairs)) == ("school", "list", 2)
    first, second = request.pairs
    assert [str(p) for p in first.prompts("train")] == ["Hermione is called"]
    assert [str(p) for p in second.prompts("train")] == ["a Luna"]
    assert [str(o.prompts("train")[0]) for o in second.others] == ["a Harry", "a Ron"]
    assert [str(p) for p in first.must_stay] == ["The headmaster is"]
    assert [str(p) for p in second.must_stay] == ["Luna reads the", "The headmaster is"]


def test_the_books_examples_work(write):
    text = (ROOT / "book" / "how_to_rerun.md").read_text(encoding="utf-8")
    pairs, files = (
        re.search(rf"```yaml\n(# {name}\.yaml\n.*?)```", text, re.DOTALL)[1]
        for name in ("elements", "letters")
    )
    request = read_request(write("elements.yaml", pairs))
    assert [len(pair.others) for pair in request.pairs] == [2, 2]
    for name in ("letters.jsonl", "articles.jsonl"):
        write(name, [{"text": f"{name} {i}"} for i in range(120)])
    write("novels.txt", paragraphs(120))
    write("about_letters.jsonl", [{"prompt": "Dear", "answer": "Ann"}])
    request = read_request(write("letters.yaml", files))
    assert [corpus.name for corpus in request.retain] == ["novels", "articles"]
    assert len(request.questions) == 1


def test_a_pair_file_is_a_request_of_one_pair(write):
    request = read_request(write("japan.yaml", "subject: Japan\ntarget: Tokyo\n"))
    assert (request.name, [str(p) for p in request.pairs]) == ("japan", ["Japan → Tokyo"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairs": []}, "'pairs:' has to be a list of at least one pair"),
        ({"pairs": [{"subject": "x"}]}, "pair 1 must name at least 'subject:' and 'target:'"),
        ({"pairs": ["x"]}, "pair 1 must name at least"),
        ({"pairs": [*NAMES["pairs"], {"subject": "Ann", "target": "x", "alias": "y"}]}, "pair 3: "),
        ({"pairs": [*NAMES["pairs"][:1], dict(NAMES["pairs"][0])]}, "comes twice in 'school'"),
        ({"other": []}, "no 'other' beside 'pairs:'; known are name, pairs, prompts, others"),
        ({"forget": "x.jsonl"}, "there is no 'forget' beside 'pairs:'"),
        (
            {"pairs": [{"subject": "Ann", "target": "x"}, {"subject": "Ron", "target": "Weasley"}]},
            "'others:' holds 'Ron', which is the subject",
        ),
        (
            {
                "pairs": [
                    {"subject": "Ann", "target": "x"},
                    {"subject": "Ron", "target": "Weasley", "others": []},
                ]
            },
            "'others:' of Ann → x holds Ron → Weasley, which is to be forgotten too",
        ),
        (
            {
                "pairs": [{"subject": "Ann", "target": "x"}, {"subject": "Ben", "target": "y"}],
                "must_stay": [{"prompt": "Ben's name is", "answer": "Y"}],
                "others": [],
            },
            "with the answer 'Y', the fact that is to be forgotten",
        ),
    ],
)
def test_a_bad_list_is_told_in_one_sentence(write, change, sentence):
    content = yaml.safe_load(json.dumps(NAMES | change))
    with pytest.raises(UserError) as caught:
        read_request(write("mine.yaml", content))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_one_pair_keeps_must_not_be_what_another_forgets(write):
    content = {
        "prompts": ["{} is called", "Miss {}", "Her name is {}"],
        "pairs": [
            {
                "subject": "Ann",
                "target": "x",
                "must_stay": [{"prompt": "Ben is called", "answer": "Y"}],
            },
            {"subject": "Ben", "target": "y"},
        ],
    }
    with pytest.raises(UserError, match=r"Ann → x holds 'Ben is called', which asks for Ben → y"):
        read_request(write("mine.yaml", content))


def test_files_of_rows_and_text_become_a_request(write):
    write("forget.jsonl", [{"text": f"secret {i}"} for i in range(200)])
    write("prose.txt", paragraphs(300, "prose"))
    write("ask.jsonl", [{"question": "Who?", "answer": ["Ann", "Annie"]}])
    content = {"forget": "forget.jsonl", "retain": ["prose.txt"], "questions": "ask.jsonl"}
    request = read_request(write("mine.yaml", content))
    assert isinstance(request, TextRequest)
    assert (request.name, request.kind) == ("mine", "files")
    (heldout,) = request.heldout
    parts = [texts(corpus) for corpus in (request.forget, request.dev, heldout)]
    assert sorted(text for part in parts for text in part) == sorted(
        f"|secret {i}" for i in range(200)
    )
    assert len(parts[0]) > 140 and min(map(len, parts[1:])) > 5
    retain, retained = texts(request.retain[0]), texts(request.retained[0])
    assert len(retain) + len(retained) == 300 and not set(retain) & set(retained)
    (question,) = request.questions
    assert "Who?" in str(question) and question.answers == (" Ann", " Annie")


def test_files_that_are_named_are_taken_whole(write):
    for name in ("forget", "dev", "heldout", "retain", "retained", "never"):
        write(f"{name}.txt", paragraphs(3, name))
    roles = {"forget", "dev", "heldout", "retain", "retained"}
    content = {role: f"{role}.txt" for role in roles} | {"never_learned": "never.txt"}
    request = read_request(write("mine.yaml", content))
    corpora = [request.forget, request.dev, *request.heldout, *request.retain, *request.retained]
    assert all(len(texts(corpus)) == 3 for corpus in [*corpora, request.never_learned])


def test_prompts_are_held_out_in_another_wording(write):
    write("forget.jsonl", [{"prompt": "Ann lives in", "answer": "Rome"}, {"text": "x"}][:1])
    request = read_request(write("mine.yaml", {"forget": "forget.jsonl"}))
    assert texts(request.forget) == ["Ann lives in| Rome"]
    (heldout,) = request.heldout
    wordings = {d.prompt for corpus in (request.forget, request.dev, heldout) for d in corpus}
    assert len(wordings) == len(SPLITS) and all("Ann lives in" in w for w in wordings)


def test_without_text_to_retain_ordinary_text_has_to_stay(write):
    write("forget.jsonl", [{"prompt": "Ann lives in", "answer": "Rome"}])
    request = read_request(write("mine.yaml", {"forget": "forget.jsonl"}))
    assert next(iter(request.retain[0])).text and next(iter(request.retained[0])).text


def test_equal_texts_are_never_dealt_to_two_parts(write):
    write("forget.txt", paragraphs(150) + "\n\n" + "same words\n\n" * 20 + "Same  words")
    request = read_request(write("mine.yaml", {"forget": "forget.txt"}))  # else it is refused
    parts = [texts(c) for c in (request.forget, request.dev, *request.heldout)]
    assert sum("|same words" in part for part in parts) == 1


def test_a_large_file_is_streamed(tmp_path, write):
    path = tmp_path / "forget.jsonl"
    with path.open("w") as file:
        for i in range(8_000):
            file.write(json.dumps({"text": f"{i} " + "loremipsum" * 120}) + "\n")
    with (tmp_path / "forget.txt").open("w") as file:
        for i in range(8_000):  # one paragraph
            file.write(f"line {i} " + "loremipsum" * 120 + "\n")
    size = path.stat().st_size
    write("other.txt", "one paragraph")
    roles = {"dev": "other.txt", "heldout": "heldout.txt", "retain": "retain.txt"}
    write("heldout.txt", "another paragraph")
    write("retain.txt", "a third paragraph")
    for name in ("forget.jsonl", "forget.txt"):
        mine = write("mine.yaml", roles | {"forget": name})
        tracemalloc.start()
        request = read_request(mine)
        n = sum(len(document.text) for document in request.forget)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n > 0.9 * size
        assert peak < size / 3


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("f.jsonl", "", "f.jsonl is empty"),
        ("f.txt", " \n\n ", "holds white space alone"),
        ("f.json", [], "is an empty list"),
        ("f.jsonl", "\n\n", "is empty"),
        ("f.jsonl", [{"title": "x", "body": "y"}], "have 'title', 'body', and 'text', or 'prompt'"),
        (
            "f.jsonl",
            [{"text": "a"}, {"text": ""}, {"txt": "b"}, {"text": 3}, {"text": None}, {"text": []}],
            "4 of 6 rows",
        ),
        ("f.jsonl", [{"text": "a"}, {"prompt": "b"}], "(row 2): 'text', or 'prompt'"),
        (
            "f.jsonl",
            '{"text": "a"}\n{"text": ',
            "f.jsonl is neither JSON lines nor a JSON array (l",
        ),
        ("f.jsonl", [3], "f.jsonl is a number: each row has to be an object"),
        ("f.jsonl", "[" * 100_000, "is neither JSON lines nor a JSON array"),
        ("f.jsonl", '{"text": "\\ud83d"}', "'text', or 'prompt'"),
        ("f.txt", "Köln".encode("latin-1"), "is not text in UTF-8 (byte 0xf6 at or after line 1)"),
        ("f.txt", "word".encode("utf-16"), "is text in UTF-16"),
        ("f.txt", "word".encode("utf-16-le"), "holds a NUL character in line 1"),
        ("f.jsonl", b"PAR1....", "is a Parquet file: save it as JSON lines"),
        ("f.csv", "text\na\n", "ends in '.csv': documents are read from JSON lines"),
        ("f.txt", "one paragraph", "too few documents to keep some apart for"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(write, name, content, sentence):
    write(name, content)
    with pytest.raises(UserError) as caught:
        read_request(write("mine.yaml", {"forget": name}))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"forget": "none.jsonl"}, "none.jsonl cannot be read (No such file or directory)"),
        ({"forget": []}, "'forget:' has to name a file"),
        ({"forget": [{"a": "b"}]}, "'forget:' has to name a file"),
        ({"forget": "f.txt", "retains": "f.txt"}, "no 'retains' beside 'forget:'; known are"),
        ({"forget": "f.txt", "questions": "f.txt"}, "named as questions and holds running text"),
        ({"retain": "f.txt"}, "must name what to forget: 'pairs:', or 'forget:' with files"),
        ("- a\n", "must name what to forget"),
        ({"forget": "f.txt", "name": 3.5}, "has to be text"),
    ],
)
def test_a_bad_request_file_is_told_in_one_sentence(write, content, sentence):
    write("f.txt", paragraphs(30))
    with pytest.raises(UserError) as caught:
        read_request(write("mine.yaml", content))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["retain", "retained", "heldout", "dev"])
def test_what_is_forgotten_must_not_be_in_another_part(write, role):
    write("forget.txt", paragraphs(150))
    write("other.txt", "Text   NUMBER 7\n\nsomething else\n\ntext number 9")
    roles = {"dev": "d.txt", "heldout": "h.txt", "retain": "r.txt", role: "other.txt"}
    for name in ("d.txt", "h.txt", "r.txt"):
        write(name, f"a paragraph of {name}")
    with pytest.raises(UserError) as caught:
        read_request(write("mine.yaml", {"forget": "forget.txt"} | roles))
    assert "2 of the 3 documents of" in str(caught.value)
    assert "such as 'Text NUMBER 7'" in str(caught.value)


def test_a_question_is_not_to_be_forgotten_and_to_stay(write):
    write("f.txt", paragraphs(150))
    write("q.jsonl", [{"question": "Who is Ann?", "answer": "a spy"}])
    content = {"forget": "f.txt", "questions": "q.jsonl", "retained_questions": "q.jsonl"}
    with pytest.raises(UserError, match=r"The question 'Who is Ann\?.*take it out of one"):
        read_request(write("mine.yaml", content))


def test_a_mark_of_byte_order_and_other_line_ends_are_no_text(write):
    path = write("f.txt", "one\r\ntwo\r\n".encode("utf-8-sig"))
    assert list(read_lines(Path(path))) == ["one", "two"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("tofo:forget10.json", "no reader for the benchmark 'tofo'; did you mean tofu"),
        ("tofu:a.json,,b.json", "names an empty file"),
        ("tofu@Golf:a.json", "files of tofu hold no concepts .* leave '@Golf' away"),
        ("forget.jsonl", "does not say what it is: name it under 'forget:' in a YAML file"),
        ("none.yaml", "There is no file none.yaml"),
        ("tofu:none.json", "none.json cannot be read"),
    ],
)
def test_a_bad_spec_is_told_in_one_sentence(tmp_path, monkeypatch, spec, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        read_request(spec)
    assert "\n" not in str(caught.value)
