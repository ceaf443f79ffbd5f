"""Requests from the command line: files are found and recorded, bad ones are refused early."""

import json

import pytest

from helpers.book import chapter_requests
from helpers.book.chapter_requests import (
    edits_of,
    facts_request,
    scores_of_benchmark,
    text_request,
)
from helpers.book.profiles import request_files, with_absolute_paths
from helpers.book.records import input_hashes
from helpers.book.settings import NOTEBOOKS, validated
from helpers.errors import UserError
from helpers.facts import ConceptPair
from helpers.requests import FactsRequest, TextRequest

CAPITALS = (("France", "Paris"), ("Japan", "Tokyo"))
CHAPTERS = ("12_entities_and_topics", "13_capabilities")
FACTS = """name: mine
pairs:
  - {subject: France, target: Paris}
  - {subject: Japan, target: Tokyo}
"""


def write_text_request(folder):
    """A YAML file of a request for text, with the files that it names."""
    for name in ("forget", "dev", "heldout", "retain", "retained"):
        rows = [json.dumps({"text": f"{name} number {i} of its kind"}) for i in range(3)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    path = folder / "text.yaml"
    names = ("forget", "dev", "heldout", "retain", "retained")
    path.write_text("".join(f"{name}: {name}.jsonl\n" for name in names))
    return path


def test_paths_are_absolute_behind_a_reader_too(tmp_path):
    for name in ("a.json", "b.json", "mine.yaml"):
        (tmp_path / name).write_text("{}")
    given = {"request_file": "tofu:a.json, b.json"}
    absolute = with_absolute_paths(given, tmp_path)["request_file"]
    assert absolute == f"tofu:{tmp_path / 'a.json'},{tmp_path / 'b.json'}"
    assert request_files(absolute) == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    concept = with_absolute_paths({"request_file": "ember@A, B/C d:a.json,b.json"}, tmp_path)
    assert concept["request_file"] == absolute.replace("tofu:", "ember@A, B/C d:")
    assert request_files(concept["request_file"]) == request_files(absolute)
    plain = with_absolute_paths({"request_file": "mine.yaml"}, tmp_path)["request_file"]
    assert plain == str(tmp_path / "mine.yaml") and request_files("") == []
    (tmp_path / "tofu:a.yaml").write_text("{}")  # a file's own name may hold a colon
    named = with_absolute_paths({"request_file": "tofu:a.yaml"}, tmp_path)["request_file"]
    assert named == str(tmp_path / "tofu:a.yaml") and request_files(named) == [named]
    with pytest.raises(UserError, match=r"There is no file .*missing.json"):
        with_absolute_paths({"request_file": "tofu:missing.json"}, tmp_path)


@pytest.mark.parametrize("stem", CHAPTERS)
def test_a_changed_file_of_a_request_makes_its_chapters_again(tmp_path, stem):
    path = write_text_request(tmp_path)
    values = validated(stem, {"request_file": str(path)}).model_dump(mode="json")
    before = input_hashes(stem, values)
    (tmp_path / "heldout.jsonl").write_text('{"text": "another"}')
    after = input_hashes(stem, values)
    changed = {name for name in after if after[name] != before[name]}
    assert len(changed) == 1 and changed.pop().startswith("request ")
    path.write_text(path.read_text() + "\n# a comment\n")
    assert input_hashes(stem, values) != after


def test_a_chapter_takes_the_file_of_its_kind_and_else_its_own_request(tmp_path, knowing):
    (tmp_path / "facts.yaml").write_text(FACTS)
    facts, text = str(tmp_path / "facts.yaml"), str(write_text_request(tmp_path))
    pair = ConceptPair("France", "Paris")
    assert isinstance(facts_request(facts, pair), FactsRequest)
    assert [p.subject for p in facts_request(facts, pair).pairs] == ["France", "Japan"]
    for file in ("", text):
        request = facts_request(file, pair)
        assert request.kind == "entity" and {p.subject for p in request.pairs} == {"France"}
    model = knowing()
    assert isinstance(text_request(model, text, ""), TextRequest)
    with pytest.raises(UserError, match="did you mean french"):
        text_request(model, "", "frensh")
    with pytest.raises(UserError, match="none of the capabilities french"):
        text_request(model, "", "")  # this model knows countries alone


def test_the_files_of_a_benchmark_are_scored_before_and_after(tmp_path, knowing, monkeypatch):
    monkeypatch.setattr(chapter_requests, "load_model", lambda *args, **kwargs: knowing())
    rows = [{"subject": s, "src": f"The capital of {s} is", "answers": [t]} for s, t in CAPITALS]
    (tmp_path / "forget.json").write_text(json.dumps(rows))
    files = {"request_file": f"zsre:{tmp_path / 'forget.json'}", "methods": "gradient_ascent"}
    own = scores_of_benchmark(validated("14_benchmarks", files))
    assert own.name.startswith("zsre forget") and set(own.scores["model"]) >= {"original"}
    assert own.table["must"].tolist() == ["go"]
    assert scores_of_benchmark(validated("14_benchmarks", {"request_file": ""})) is None
    mine = validated("14_benchmarks", {"request_file": str(write_text_request(tmp_path))})
    assert scores_of_benchmark(mine) is None  # no benchmark's


def test_a_method_that_fails_does_not_take_the_others_along(knowing):
    model, request = knowing(), facts_request("", ConceptPair("France", "Paris"))
    edits, refused = edits_of(model, request, "gradient_ascent, rome", seed=0)
    assert list(edits) == ["gradient_ascent"] and "one pair at a time" in refused["rome"]
    with pytest.raises(UserError, match="one pair at a time"):
        edits_of(model, request, "rome", seed=0)


@pytest.mark.parametrize(
    ("stem", "methods", "sentence"),
    [
        (CHAPTERS[0], "rome", "does not forget several facts together here"),
        (CHAPTERS[0], "sae_pair", "does not forget several facts together here"),  # needs SAEs
        (CHAPTERS[1], "npo, rome", "does not forget text here"),
        (CHAPTERS[1], "npoo", "did you mean npo"),
    ],
)
def test_a_method_that_cannot_is_refused_before_anything_runs(stem, methods, sentence):
    with pytest.raises(UserError, match=sentence):
        validated(stem, {"methods": methods})


def test_the_chapters_are_in_the_order_of_their_numbers():
    assert list(NOTEBOOKS) == sorted(NOTEBOOKS)
