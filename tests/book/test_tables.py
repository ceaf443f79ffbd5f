"""Tables as pages show them."""

import ast
import re

import pandas as pd
import pytest

from helpers.book.settings import ROOT
from helpers.book.sources import notebook_code
from helpers.book.tables import styled


def test_a_table_is_the_same_whenever_it_is_made():
    table = pd.DataFrame({"a": ["<b>x</b>", "\x1b"], "n": [1.25, None]})
    once, again = (styled(table, precision=1, na_rep="–")._repr_html_() for _ in range(2))
    assert once == again
    assert "&lt;b&gt;x&lt;/b&gt;" in once and "\\x1b" in once and "–" in once
    assert once != styled(table.assign(n=2.0))._repr_html_()


@pytest.mark.parametrize("name", [None, "method"])
def test_headings_stand_in_one_row_and_none_is_empty(name):
    table = pd.DataFrame({"n": [1.5], "word": ["x"]}, index=pd.Index(["rome"], name=name))
    page = styled(table)._repr_html_()
    head = re.search(r"<thead>(.*)</thead>", page, re.DOTALL)[1]
    assert head.count("<tr>") == 1
    assert re.findall(r"<th [^>]*>([^<]*)</th>", head) == [*([name] if name else []), "n", "word"]
    assert head.count("<td ") == (name is None)
    assert table.index.name == name  # what was shown stays as it was


def test_numbers_line_up_at_the_right():
    page = styled(pd.DataFrame({"n": [1.5], "word": ["x"], "yes": [True]}))._repr_html_()
    assert re.findall(r"(\.col\d) {\s*text-align: right", page) == [".col0"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_chapters_show_tables_through_this_module(path):
    """pandas' own styles escape nothing, name each table by chance, and cut text off."""
    code = ast.parse(notebook_code(path))
    attributes = {n.attr for n in ast.walk(code) if isinstance(n, ast.Attribute)}
    assert not attributes & {"style", "to_html", "Styler"}
    shown = [ast.unparse(n.value) for n in code.body if isinstance(n, ast.Expr)]
    assert not [line for line in shown if line.startswith("pd.DataFrame(")]
