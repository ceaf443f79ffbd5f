"""The page of methods says what the registry says, and no docstring becomes markup."""

import ast
import inspect
import json
import re

import pytest

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


def test_costs_are_the_measured_ones(page, tmp_path):
    rows = [{"method": "rome", "seconds": 12.34, "edit kB": 4321.0}]
    (tmp_path / "methods.json").write_text(json.dumps({"rows": rows}))
    row = next(x for x in methods_page(tmp_path).splitlines() if x.startswith("| [`rome`]"))
    assert row.endswith("| 12.3 | 4,321 |")
    assert "| – | – |" in methods_page(tmp_path / "none")
