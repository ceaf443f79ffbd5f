"""Two runs side by side: what differs is listed, and nothing else."""

import json
import math

import pytest

from helpers.book.compare import compare_runs, main
from helpers.errors import UserError


@pytest.fixture
def make_run(tmp_path):
    """`make_run(name, chapters)` -> the folder of a run: chapter → (settings, numbers)."""

    def make(name, chapters):
        for stem, (settings, numbers) in chapters.items():
            folder = tmp_path / name / "artifacts" / stem
            folder.mkdir(parents=True)
            manifest = {"settings": settings, "inputs": {}, "outputs": {"numbers.json": "0"}}
            (folder / "manifest.json").write_text(json.dumps(manifest))
            (folder / "numbers.json").write_text(json.dumps(numbers))
        return tmp_path / name

    return make


def test_settings_and_numbers_that_differ_are_listed_in_the_order_of_chapters(make_run):
    same = ({"seed": 0}, {"n": 3})
    first = make_run(
        "a",
        {
            "06_edit_mlps": ({"seed": 0, "run": "runs/a"}, {"left": 0.5, "best": "rome", "n": 3}),
            "00_model_and_facts": ({"subject": "France"}, {"subject": "France", "mean": 0.75}),
            "02_propagation": same,
            "08_evaluate": same,
        },
    )
    second = make_run(
        "b",
        {
            "06_edit_mlps": ({"seed": 1, "run": "runs/b"}, {"left": 0.25, "best": "memit", "n": 3}),
            "00_model_and_facts": ({"subject": "Japan"}, {"subject": "Japan", "mean": 0.75}),
            "02_propagation": same,
        },
    )
    table = compare_runs(first, second)
    assert list(table["name"]) == ["subject", "subject", "seed", "left", "best"]
    assert list(table["kind"]) == ["setting", "number", "setting", "number", "number"]
    left = table.set_index("name").loc["left"]
    assert (left["first"], left["second"], left["difference"]) == (0.5, 0.25, -0.25)
    assert math.isnan(table.set_index("name").loc["best", "difference"])


def test_a_number_that_one_run_lacks_is_told(make_run, capsys):
    first = make_run("a", {"02_propagation": ({"saes": None}, {"old": 1})})
    second = make_run("b", {"02_propagation": ({"saes": [1]}, {"new": "\x1b[31mred"})})
    assert main([str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert "old" in shown and "new" in shown and "–" in shown
    assert "\x1b" not in shown


def test_equal_runs_are_said_to_be_equal(make_run, capsys):
    chapters = {"02_propagation": ({"seed": 0}, {"n": 3})}
    assert main([str(make_run("a", chapters)), str(make_run("b", chapters))]) == 0
    assert "same numbers" in capsys.readouterr().out


def test_runs_without_a_common_chapter_are_told_in_one_sentence(make_run, tmp_path, capsys):
    first = make_run("a", {"02_propagation": ({}, {"n": 3})})
    with pytest.raises(UserError, match="no finished chapter in common"):
        compare_runs(first, tmp_path / "nowhere")
    assert main([str(first), str(tmp_path / "nowhere")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
