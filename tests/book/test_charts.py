"""Interactive charts in notebooks, on pages and in the built book."""

import json
import re

import nbformat
import pandas as pd
from fake_book import code, fake_run
from nbformat.v4 import new_output

from helpers.book import build as book
from helpers.book.charts import BUNDLE, VEGA_LITE, InteractiveChart, chart_html, write_vega
from helpers.book.sortable import IN_JUPYTER
from helpers.plots.interactive import each_concept

NAME = "</script><script>alert(1)</script><b>"


def chart() -> InteractiveChart:
    table = pd.DataFrame({"concept": [NAME], "neuron": [0.1], "latent": [0.2]})
    return InteractiveChart(each_concept(table, x="neuron", y="latent"), summary=NAME)


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*)</script>', html)[1])


def test_jupyter_draws_the_chart_by_itself():
    shown = chart()._repr_mimebundle_()
    assert shown[VEGA_LITE]["$schema"].endswith("v5.json")
    assert "1 concept:" in shown["text/plain"]


def test_a_page_holds_the_chart_as_data_and_loads_nothing():
    html = chart_html(chart().spec)
    assert html.count("<script") == html.count("</script>") == 1 and "<b>" not in html
    assert "http" not in html
    tables = data_of(html)["datasets"].values()
    assert any(row.get("concept") == NAME for table in tables for row in table)


def test_staging_turns_charts_into_html_and_drops_scripts_for_jupyter(tmp_path):
    run = fake_run(tmp_path / "run")
    path = run / "notebooks" / "01_keys_and_values.ipynb"
    notebook = nbformat.read(path, 4)
    outputs = [
        new_output("display_data", data=chart()._repr_mimebundle_()),
        new_output("display_data", data={"text/html": f"<p>table</p>{IN_JUPYTER}"}),
    ]
    notebook.cells.append(code("show()", outputs))
    nbformat.write(notebook, path)
    staged = book.stage(run, tmp_path / "stage")
    cells = nbformat.read(staged / "notebooks" / path.name, 4).cells
    (shown,) = [cell.outputs for cell in cells if cell.source == "show()"]
    assert list(shown[0].data) == ["text/html"]
    assert data_of(shown[0].data["text/html"]) == data_of(chart_html(chart().spec))
    assert shown[1].data == {"text/html": "<p>table</p>"}


def test_the_book_ships_vega_in_one_light_file(tmp_path):
    write_vega(tmp_path)
    text = (tmp_path / BUNDLE).read_text()
    assert len(text.encode()) < 1.1e6
    assert text.startswith("(() =>") and "window.vegaEmbed" in text
