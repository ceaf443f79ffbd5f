"""The search for settings: as many runs for each method, resumable, chosen by score."""

import pandas as pd
import pytest
from tiny_models import KNOWN

from helpers.errors import UserError
from helpers.evaluation import tuning
from helpers.evaluation.tuning import GRID, chosen, search, settings_of, tuned
from helpers.facts import ConceptPair, facts
from helpers.io.files import read_json, write_json
from helpers.methods import METHODS


def test_every_method_has_four_settings_of_hyperparameters_that_it_has():
    searched = {
        n for n, m in METHODS.items() if m.family in ("training", "inference") and "pair" in m.takes
    }
    assert set(GRID) == searched
    for name in GRID:
        settings = settings_of(name)
        assert len(settings) == 4 and len({str(s) for s in settings}) == 4
        assert set(GRID[name]) <= set(METHODS[name].hyperparameters())


def test_the_best_mean_score_over_facts_is_chosen():
    rows = [
        ("a", {"lr": 1}, 0.9, 1.0),
        ("a", {"lr": 2}, 0.8, 1.0),
        ("a", {"lr": 1}, 0.1, 1.0),  # another fact
        ("a", {"lr": 2}, 0.7, 1.0),
        ("b", {"x": 1}, 0.0, 0.9),  # nothing forgotten: the one with most retention
        ("b", {"x": 2}, 0.0, 0.8),
        ("c", {"x": 1}, None, None),  # refused
        ("c", {"x": 2}, 0.1, 0.2),
    ]
    runs = pd.DataFrame(rows, columns=["method", "settings", "score", "retention"])
    assert chosen(runs) == {"a": {"lr": 2}, "b": {"x": 1}, "c": {"x": 2}}


def test_a_stopped_search_goes_on_and_tries_nothing_twice(knowing, tmp_path, monkeypatch):
    model, path = knowing(), tmp_path / "record.json"
    by_name = {f.subject: ConceptPair.of(f) for f in facts("capital")}
    pairs = [by_name[s] for s in KNOWN[3:5]]
    monkeypatch.setitem(GRID, "npo", {"lr": (0.005, 0.01), "steps": (1, 2)})
    monkeypatch.setitem(GRID, "in_context", {"request": ("a", "b", "c", "d")})
    methods = {"npo": {"n_neighbours": 2, "n_passages": 1}, "in_context": {}}
    runs_made = []
    tradeoff = tuning.tradeoff

    def counted(model, pairs, methods, **options):
        runs_made.append((pairs[0].subject, *methods))
        if len(runs_made) == 6:
            raise KeyboardInterrupt
        return tradeoff(model, pairs, methods, **options)

    monkeypatch.setattr(tuning, "tradeoff", counted)
    with pytest.raises(KeyboardInterrupt):
        search(model, pairs, methods, path)
    assert len(read_json(path)["runs"]) == 5
    runs = search(model, pairs, methods, path)
    assert len(runs_made) == 5 + 1 + 11
    assert (runs.groupby(["method", "subject"]).size() == 4).all() and len(runs) == 16
    assert set(chosen(runs)) == {"npo", "in_context"}
    record = read_json(path)
    write_json(path, {k: v for k, v in record.items() if k != "score"})  # from before 2026-12
    with pytest.raises(UserError, match="scores of an older kind"):
        search(model, pairs, methods, path)
    write_json(path, {"model_hash": "0" * 16, "runs": []})
    with pytest.raises(UserError, match="is of another model"):
        search(model, pairs, methods, path)


def test_defaults_are_those_that_the_committed_search_chose():
    record = tuned()
    for name, settings in record["chosen"].items():
        defaults = METHODS[name].hyperparameters()
        assert {k: defaults[k] for k in settings} == settings, name
    counts = pd.DataFrame(record["runs"]).groupby("method").size()
    assert counts.nunique() == 1  # the same number of runs for each
    assert record["config"]["split"] == "dev"


def test_no_fact_of_the_search_is_reported_on():
    from helpers.facts import fact_split

    assert {fact_split(r["subject"]) for r in tuned()["runs"]} == {"dev"}
