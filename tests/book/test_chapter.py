"""What a notebook does first and last, with a tiny model in the place of the real one."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.book import chapter
from helpers.book.chapter import NOT_MEASURED, Chapter, format_number, require_edits
from helpers.errors import UserError
from helpers.evaluation import Metric
from helpers.io.files import read_json
from helpers.models import model_hash


@pytest.fixture
def opened(tiny_model, tmp_path, monkeypatch):
    """`opened(**parameters)` -> a chapter whose model is tiny and knows everything."""
    model = tiny_model()
    monkeypatch.setattr(chapter, "load_model", lambda *_, **__: model)
    monkeypatch.setattr(chapter, "require_known", lambda *_: None)

    def open_(**parameters) -> Chapter:
        given = {"subject": "Japan", "target": "Tokyo", "run": str(tmp_path / "run")}
        return Chapter("02_propagation", given | parameters)

    return open_


def test_numbers_and_manifest_are_written_at_the_end(opened, tmp_path):
    page = opened(n_facts=3, seed=7)
    page.glue(share=0.123456789, n_layers=30, metric=Metric(0.9, 0.8, 1.0, 12))
    page.finish()
    folder = tmp_path / "run" / "artifacts" / "02_propagation"
    assert read_json(folder / "numbers.json") == {
        "subject": "Japan",
        "target": "Tokyo",
        "share": 0.123456789,
        "n_layers": 30,
        "metric": "0.90 [0.80, 1.00], n = 12",
    }
    manifest = read_json(folder / "manifest.json")
    assert manifest["settings"]["n_facts"] == 3
    assert manifest["seeds"] == [7]
    assert manifest["model_hash"] == model_hash(page.model)
    assert list(manifest["outputs"]) == ["numbers.json"]


def test_equal_pictures_are_equal_files_and_stay_out_of_the_notebook(opened, tmp_path):
    page = opened()
    for name in ("one", "two"):
        figure, axis = plt.subplots()
        axis.plot([0, 1])
        page.save_picture(name, figure)
        assert not plt.fignum_exists(figure.number)
    page.finish()
    folder = tmp_path / "run" / "artifacts" / "02_propagation"
    assert (folder / "one.svg").read_bytes() == (folder / "two.svg").read_bytes()
    assert read_json(folder / "manifest.json")["outputs"].keys() >= {"one.svg", "two.svg"}


def test_what_the_clock_decided_stands_in_the_manifest_alone(opened, tmp_path, capsys):
    page = opened()
    page.glue(share=0.5)
    page.glue_times(step_seconds=1.25, slowest="rome")
    page.finish()
    folder = tmp_path / "run" / "artifacts" / "02_propagation"
    assert "seconds" not in (folder / "numbers.json").read_text()
    assert read_json(folder / "manifest.json")["times"] == {"step_seconds": 1.25, "slowest": "rome"}
    assert "step_seconds" not in capsys.readouterr().out


def test_prose_has_a_dash_for_what_was_not_measured():
    assert format_number(0.12345) == "0.123"
    assert format_number(0.5, ".0%") == "50%"
    assert format_number(None) == format_number(math.nan) == NOT_MEASURED


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_say_nothing_are_not_quoted(opened, value):
    page = opened()
    with pytest.raises(ValueError, match=r"share is .*nothing to quote"):
        page.glue(share=value)
    page.finish()
    assert "share" not in read_json(page.run.path("numbers.json"))


def test_told_numbers_are_glued(opened, capsys, monkeypatch):
    glued = {}
    monkeypatch.setattr(chapter, "glue", lambda name, value, display: glued.update({name: value}))
    opened().glue(n=3, share=np.float64(0.5))
    assert glued == {"subject": "Japan", "target": "Tokyo", "n": 3, "share": 0.5}
    assert repr(glued["share"]) == "0.5"  # what a format of the book is given


def test_a_pair_file_takes_the_place_of_subject_and_target(opened, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        json.dumps({"subject": "Hermione", "target": "Granger", "prompts": ["a {}"] * 3})
    )
    assert str(opened(pair_file=str(tmp_path / "mine.yaml")).pair) == "Hermione → Granger"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"n_facts": "many"}, "Notebook 02_propagation: parameter 'n_facts' is 'many'"),
        ({"n_facts": 1}, "parameter 'n_facts' is 1: .*greater than or equal to 2"),
        (
            {"n_fact": 3, "In": ["# Parameters\nn_fact = 3\n"]},
            "there is no parameter 'n_fact'; did you mean n_facts",
        ),
        ({"subject": "Japn"}, "'Japn': did you mean Japan"),
        ({"pair_file": "none.yaml"}, "There is no file none.yaml"),
    ],
)
def test_bad_parameters_are_told_in_one_sentence(opened, parameters, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        opened(**parameters)
    assert "\n" not in str(caught.value)


def test_an_unknown_fact_stops_the_notebook(opened, monkeypatch):
    def refuse(model, pair):
        raise UserError(f"The model does not know {pair}")

    monkeypatch.setattr(chapter, "require_known", refuse)
    with pytest.raises(UserError, match="does not know Japan → Tokyo"):
        opened()


def test_where_every_method_refused_the_chapter_stops_with_the_reason():
    table = pd.DataFrame(
        {
            "family": ["surgery", "training", "control"],
            "score": [np.nan, np.nan, 0.1],
            "refused": ["Too short.", "No SAE.", ""],
        }
    )
    with pytest.raises(UserError, match=r"nothing to compare.* Too short\.$"):
        require_edits(table)
    with pytest.raises(UserError, match=r"another fact\.$"):
        require_edits(table.assign(refused=1))
    require_edits(table.assign(score=[0.3, np.nan, np.nan]))
