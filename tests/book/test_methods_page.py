"""The page of methods says what the registry says, and no docstring becomes markup."""

import ast
import inspect
import json
import re

import pandas as pd
import pytest

from helpers.book.method_sources import OWN
from helpers.book.methods_page import methods_page
from helpers.book.registered import method_names
from helpers.book.settings import ROOT
from helpers.methods import METHODS

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def page() -> str:
    return methods_page(RESULTS)


def entry(page: str, name: str) -> str:
    _, _, rest = page.partition(f"\n### `{name}`\n")
    return re.split(r"\n\(method-|\n## ", rest)[0]


def test_every_method_has_a_row_and_an_entry_once(page):
    for name in METHODS:
        label = name.replace("_", "-")
        assert page.count(f"[`{name}`](method-{label}) |") == 1
        assert page.count(f"(method-{label})=\n### `{name}`\n") == 1
    assert page.count("\n### ") == len(METHODS)


def test_names_and_forms_are_those_of_the_registry():
    assert {m.name: (m.family, m.takes, m.needs_saes) for m in method_names()} == {
        name: (m.family, m.takes, bool(m.sae_sites)) for name, m in METHODS.items()
    }


@pytest.mark.parametrize("name", sorted(METHODS))
def test_hyperparameters_are_shown_with_their_defaults(page, name):
    defaults = METHODS[name].hyperparameters()
    shown = re.findall(r"^- `(\w+) = (.+?)`(?::|$)", entry(page, name), re.MULTILINE)
    for field, default in shown:
        try:
            value = ast.literal_eval(default)
        except ValueError:  # an expression or a constant's name
            continue
        assert value == defaults[field], field
    own = inspect.get_annotations(METHODS[name].hparams)
    assert {field for field, _ in shown} == {
        f for f, kind in own.items() if "ClassVar" not in str(kind)
    }


def row_of(page: str, name: str) -> str:
    return next(x for x in page.splitlines() if x.startswith(f"| [`{name}`]"))


def test_costs_are_the_measured_ones_and_what_is_missing_is_said(tmp_path):
    rows = [{"method": "rome", "seconds": 12.34, "edit kB": 4321.0}]
    rows.append({"method": "in_context", "seconds": 0.0002, "edit kB": 0.1})
    (tmp_path / "methods.json").write_text(json.dumps({"rows": rows}))
    page = methods_page(tmp_path)
    assert row_of(page, "rome").endswith("| 12.3 | 4,321 |")
    assert row_of(page, "in_context").endswith("| < 0.01 | 0 |")
    assert row_of(page, "memit").endswith("| not measured | not measured |")
    assert row_of(methods_page(tmp_path / "none"), "rome").endswith(
        "| not measured | not measured |"
    )


def test_a_published_time_stands_in_for_a_cost_that_was_not_measured(tmp_path):
    rows = {"metric": "seconds", "split": "heldout", "method": ["npo", "npo", "rome"]}
    table = pd.DataFrame(rows | {"value": [3.0, 5.0, 9.0]})
    table.to_parquet(tmp_path / "facts.parquet")
    rows = [{"method": "rome", "seconds": 12.34, "edit kB": 4321.0}]
    (tmp_path / "methods.json").write_text(json.dumps({"rows": rows}))
    page = methods_page(tmp_path)
    assert row_of(page, "npo").endswith("| 4 † | not measured |")
    assert row_of(page, "rome").endswith("| 12.3 | 4,321 |")


def test_no_paper_is_named_as_the_source_of_a_method_of_our_own(page):
    for name in OWN:
        assert "Papers:" not in entry(page, name)
        assert "of this suite's own, which builds on {cite:t}" in entry(page, name)
    assert "Papers: {cite:p}`meng2022rome`" in entry(page, "rome")
