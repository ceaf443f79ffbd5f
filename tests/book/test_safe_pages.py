"""Words of users, files and models on the book's pages: shown as they are, never obeyed."""

import html
import json
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from fake_book import TITLES, code, copy_sources, fake_run, glue
from nbformat.v4 import new_output

from helpers.book import build as book
from helpers.book.charts import InteractiveChart
from helpers.book.check import check
from helpers.book.sortable import sortable
from helpers.book.tables import styled
from helpers.io.safe_text import escape_markdown, visible, with_arrows_kept
from helpers.plots.base import use_style
from helpers.plots.dashboards import Context, Dashboard
from helpers.plots.interactive import each_concept
from helpers.plots.model_and_facts import known_facts, likeliest_answers
from helpers.plots.neurons import ranks_by_layer

FIRST, SECOND, *_ = TITLES
# Everything that something on the way to a page may obey: Jinja, HTML, MyST's roles, directives and
# targets, Markdown, MathJax, mathtext, a table's bars, a terminal.
NAME = (
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}{% raw %}<img src=x "
    "onerror=alert(1)><script>alert(2)</script> {ref}`x` `a``b` $$x$$ \\(y\\) $5 and $6 | | "
    "**b** [l](javascript:alert(3)) &lt; :::{note} (t)= ![i](y) <!-- --> \\"
)
SHOWN = visible(NAME)


@dataclass
class Hostile:
    """A built book of hostile words.

    Attributes:
        html: Its pages.
        folder: Where a template engine's command would have left its mark.
    """

    html: Path
    folder: Path

    def text(self, name: str) -> str:
        """A page's text, entities resolved."""
        return html.unescape((self.html / name).read_text())


def outputs() -> list:
    """What a notebook shows of a name: table, dashboard, sortable table, plain text, figure."""
    table = pd.DataFrame({NAME: [NAME, "b"], "n": [1.5, 2.5]}, index=pd.Index([NAME, "x"]))
    board = Dashboard(
        NAME, (Context((NAME, " x"), (1.0, 0.5), 0),), np.array([0.0, 1.0]), np.ones(1), 0.5, 9,
        (NAME,), (NAME,),
    )  # fmt: skip
    ranks = pd.DataFrame({"family": [NAME, "b"], "value": ["1 [0, 2]", NAME]})
    pages = [styled(table)._repr_html_(), table._repr_html_(), board.html()]
    pages.append(sortable(ranks, numeric=["value"]))
    shown = [new_output("display_data", data={"text/html": page}) for page in pages]
    concepts = pd.DataFrame({"concept": [NAME], "neuron": [0.5], "latent": [0.5]})
    chart = InteractiveChart(each_concept(concepts, x="neuron", y="latent"), summary=NAME)
    shown.append(new_output("display_data", data=chart._repr_mimebundle_()))
    shown.append(new_output("stream", name="stdout", text=f"{NAME}\x1b[2J\n"))
    return [*shown, new_output("execute_result", data={"text/plain": NAME}, execution_count=1)]


def hostile_run(folder: Path) -> Path:
    """A run whose model, profile, subject, target and outputs are all `NAME`."""
    run = fake_run(folder)
    for stem in TITLES:
        path = run / "notebooks" / f"{stem}.ipynb"
        notebook = nbformat.read(path, 4)
        notebook.metadata["papermill"]["parameters"] = {
            "subject": NAME,
            "pair_file": f"/home/somebody/secret/{stem}.yaml",
        }
        set_up = next(c for c in notebook.cells if "chapter = Chapter(" in c.source)
        set_up.outputs = [glue(name, NAME, hidden=True) for name in ("subject", "target")]
        notebook.cells.insert(-1, code("show()", outputs()))
        nbformat.write(notebook, path)
        path = run / "artifacts" / stem / "manifest.json"
        manifest = json.loads(path.read_text())
        settings = {"model": NAME, "subject": NAME, "target": NAME, "relation": NAME}
        settings |= {"pair_file": "/home/somebody/secret/mine.yaml"}
        manifest |= {"settings": settings, "profile": NAME, "commit": NAME, "started": NAME}
        manifest |= {"times": {"slowest": NAME}, "versions": {NAME: NAME}}
        path.write_text(json.dumps(manifest))
    return run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The book of a hostile run, built from a copy of the sources."""
    root = copy_sources(tmp_path_factory.mktemp("root"))
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "ROOT", root)
        patch.chdir(folder)
        return Hostile(book.build(hostile_run(folder / "hostile")).parent, folder)


def test_no_template_engine_reads_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    staged = book.stage(hostile_run(tmp_path / "run"), tmp_path / "stage")
    intro = (staged / "book" / "intro.md").read_text()
    assert escape_markdown(NAME) in intro and "{{ " not in intro
    assert "substitution" not in (staged / "_config.yml").read_text().split("parse:")[1]
    assert not list(tmp_path.rglob("MARK"))


def test_markdown_of_any_text_shows_it_as_it_is():
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    for text in (NAME, "a\nb", "\x1b[2J", "- x", "1. x", "# x", "​x", "Côte d'Ivoire"):
        page = parser.render(
            f"Of {escape_markdown(text)}.\n\n| a |\n|---|\n| {escape_markdown(text)} |"
        )
        body = html.unescape(page)
        assert body.count(visible(text)) == 2, page
        assert "<script" not in page and "<img" not in page and "<a" not in page


@pytest.mark.slow
def test_a_book_of_hostile_words_runs_nothing_and_shows_them(hostile):
    assert not list(hostile.folder.rglob("MARK"))
    assert check(hostile.html) == []
    for name in ("book/intro.html", "book/status.html", f"notebooks/{FIRST}.html"):
        page = (hostile.html / name).read_text()
        assert "<img src=x" not in page and "<script>alert" not in page
    assert "cycler.__init__" in hostile.text("book/intro.html")
    assert "/home/somebody" not in "".join(
        path.read_text() for path in hostile.html.rglob("*") if path.suffix in (".html", ".ipynb")
    )


@pytest.mark.slow
def test_in_a_browser_no_script_of_a_name_runs_and_the_words_are_readable(hostile, browser):
    messages, requested = [], []
    page = browser.new_page()
    page.on("dialog", lambda d: (messages.append(f"dialog {d.message}"), d.dismiss()))
    page.on("pageerror", lambda e: messages.append(f"error {e}"))
    page.on("request", lambda r: requested.append(r.url))
    for name in ("book/intro.html", "book/status.html", f"notebooks/{FIRST}.html"):
        page.goto((hostile.html / name).as_uri())
        page.wait_for_load_state("networkidle")
        if page.locator(".interactive-chart").count():
            page.locator(".interactive-chart > summary").click()
            page.get_by_role("combobox", name="Concept:").select_option(NAME)
            page.locator(".interactive-plot svg text", has_text="cycler").wait_for()
        shown = page.inner_text("article")
        assert "cycler.__init__.__globals__.os.system" in shown
        assert "<script>alert(2)</script>" in shown and "{ref}`x`" in shown
    cells = page.locator("table.dataframe td").all_inner_texts()
    assert SHOWN in cells  # letter by letter
    assert page.locator("mjx-container").count() == page.locator(".math").count()
    page.close()
    assert messages == []
    assert not [url for url in requested if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("<article><img src=x onerror=alert(1)></article>", "a handler, onerror"),
        ("<article><script>alert(1)</script></article>", "a script, alert(1)"),
        ("<article><a href='java&#10;script:alert(1)'>x</a></article>", "an address that runs"),
        ("<article><svg><a xlink:href='javascript:x'>x</a></svg></article>", "an address that"),
        ("<article><iframe srcdoc='<b>'></iframe></article>", "an element <iframe>"),
        ("<script>theme()</script><article>x</article>", ""),
        ("<article><script type='application/json'>{}</script></article>", ""),
    ],
)
def test_the_check_finds_what_would_run(tmp_path, page, problem):
    (tmp_path / "a.html").write_text(page)
    problems = check(tmp_path)
    assert bool(problems) == bool(problem)
    assert not problem or any(problem in message for message in problems)


RIGHT_TO_LEFT = ("صنعاء", "عدن")


@pytest.mark.slow
def test_an_arrow_between_right_to_left_names_leads_from_the_subject_to_the_target(browser):
    first, second = RIGHT_TO_LEFT
    page = browser.new_page()
    page.set_content(f"<p>The fact {with_arrows_kept(f'{first} → {second}')} is known.</p>")
    left = """names => names.map(name => {
        const text = document.querySelector('p').firstChild, range = document.createRange();
        const at = text.data.indexOf(name);
        range.setStart(text, at);
        range.setEnd(text, at + name.length);
        return range.getBoundingClientRect().left;
    })"""
    subject, arrow, target = page.evaluate(left, [first, "→", second])
    page.close()
    assert subject < arrow < target


def test_arrows_are_marked_where_names_need_it_and_nowhere_else(tmp_path):
    assert with_arrows_kept("France → Paris, x → עברית") == "France → Paris, x → עברית"
    run, (subject, target) = fake_run(tmp_path / "run"), RIGHT_TO_LEFT
    for path in (run / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        set_up = next(c for c in notebook.cells if "chapter = Chapter(" in c.source)
        words = {"subject": subject, "target": target, "edit": f"{subject} → {target}"}
        set_up.outputs = [glue(*fact, hidden=True) for fact in words.items()]
        nbformat.write(notebook, path)
    staged = book.stage(run, tmp_path / "stage")
    for name in ("book/intro.md", f"notebooks/{FIRST}.ipynb"):
        text = (staged / name).read_text()
        assert f"{subject} →\u200e {target}" in text and f"{subject} → {target}" not in text


@pytest.mark.parametrize("name", ["Ke$$ha", "A$AP and $b$", "x_{1}^2", "\\frac{a}{b}"])
def test_figures_show_a_name_as_it_is(name):
    use_style()
    table = pd.DataFrame(
        {"subject": [name, "b"], "probability": [0.5, 0.1], "lowest": [0.4, 0.0]}
        | {"highest": [0.6, 0.2], "known": [True, False]}
    )
    ranks = pd.DataFrame({"layer": [0, 1], "group": [name] * 2, "rank": [3, 99]})
    figures = [
        known_facts(table, name),
        likeliest_answers([name], [[(name, 0.5), ("\n", 0.1)]]),
        ranks_by_layer(ranks),
    ]
    for figure in figures:
        figure.canvas.draw()
        texts = [t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text"))]
        assert name in texts
        assert not any("mathdefault" in t for t in texts)
    assert {"10⁰", "10¹", "10²"} <= set(texts)
