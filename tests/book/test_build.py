"""The book: staging, a strict build of a small run, and what the pages must satisfy."""

import html
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from fake_book import ROOT, TITLES, code, copy_sources, fake_run, glue
from pages import Page, broken_links

from helpers.book import build as book
from helpers.book.check import check
from helpers.book.pages import Executed, duration_in_words, page_words
from helpers.errors import UserError


@pytest.fixture
def run(tmp_path) -> Path:
    return fake_run(tmp_path / "run")


def test_parameters_and_set_up_are_folded_under_the_line_of_the_run(run, tmp_path):
    staged = book.stage(run, tmp_path / "stage")
    notebook = nbformat.read(staged / "notebooks" / "01_keys_and_values.ipynb", 4)
    cells = [(cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells[1:5]]
    assert cells[0] == ("*Run with: smollm2&#45;135m · Japan → Tokyo · profile smoke · seed 0*", [])
    assert [tags for _, tags in cells[1:]] == [
        ["parameters", "hide-input"],
        ["injected-parameters", "hide-cell"],
        ["hide-cell"],
    ]
    assert "import Chapter" in cells[3][0]


@pytest.mark.parametrize("stem", TITLES)
def test_every_chapter_shows_its_line_of_the_run_and_its_set_up_folded(stem):
    notebook = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text())
    notebook["metadata"]["papermill"] = {"duration": 1.0, "parameters": {}}
    page = json.loads(Executed(stem, notebook, {"settings": {"n_facts": 7}}).page())
    cells = [("".join(c["source"]), c["metadata"].get("tags", [])) for c in page["cells"][:4]]
    assert cells[1][0].startswith("*Run with: ")
    assert cells[2][1] == ["parameters", "hide-input"]
    assert cells[3][1] == ["hide-cell"]
    assert f'Chapter("{stem}"' in cells[3][0]


def test_a_cell_of_glue_stays_off_the_page(run, tmp_path):
    staged = book.stage(run, tmp_path / "stage")
    notebook = nbformat.read(staged / "notebooks" / "00_model_and_facts.ipynb", 4)
    (glued,) = [cell for cell in notebook.cells if cell.source == "glue(...)"]
    assert glued.metadata["tags"] == ["remove-cell"]


def test_provenance_is_the_last_section_of_every_notebook(run, tmp_path):
    staged = book.stage(run, tmp_path / "stage")
    for stem in TITLES:
        notebook = nbformat.read(staged / "notebooks" / f"{stem}.ipynb", 4)
        nbformat.validate(notebook)
        text = notebook.cells[-1].source
        assert text.startswith("## Provenance")
        for part in ("smoke", "abcdef012345", "0123456789abcdef", "torch 2.13.0", "1,234 MB"):
            assert part in text
        assert f"notebooks/{stem}.ipynb out.ipynb" in text
        assert "-p target Tokyo" in text
        assert "-p run" not in text


def test_staging_replaces_what_was_there(run, tmp_path):
    stale = tmp_path / "stage" / "notebooks" / "99_old.ipynb"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    book.stage(run, tmp_path / "stage")
    assert not stale.exists()


def test_missing_notebook_is_told_in_one_sentence(run, tmp_path):
    (run / "notebooks" / "02_propagation.ipynb").unlink()
    with pytest.raises(UserError, match=r"02_propagation\.ipynb is missing.*make book"):
        book.stage(run, tmp_path / "stage")


def test_missing_manifest_is_told_in_one_sentence(run, tmp_path):
    (run / "artifacts" / "02_propagation" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        book.stage(run, tmp_path / "stage")


def test_damaged_notebook_is_told_in_one_sentence(run, tmp_path):
    (run / "notebooks" / "02_propagation.ipynb").write_text('{"cells": [')
    with pytest.raises(UserError, match="damaged"):
        book.stage(run, tmp_path / "stage")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"exception": True}, "stopped with an error"), ({"duration": None}, "no record")],
)
def test_failed_notebook_does_not_become_a_page(run, change, sentence):
    path = run / "notebooks" / "00_model_and_facts.ipynb"
    notebook = json.loads(path.read_text())
    notebook["metadata"]["papermill"] |= change
    path.write_text(json.dumps(notebook))
    with pytest.raises(UserError, match=sentence):
        Executed.read(run, "00_model_and_facts")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda cell: cell.update(outputs=[]), "fig-01 .* is empty"),
        (lambda cell: cell["metadata"]["mystnb"].pop("image"), "fig-01 .* alt text"),
    ],
)
def test_figure_must_be_there_and_described(run, spoil, sentence):
    path = run / "notebooks" / "01_keys_and_values.ipynb"
    notebook = json.loads(path.read_text())
    spoil(next(cell for cell in notebook["cells"] if "mystnb" in cell["metadata"]))
    path.write_text(json.dumps(notebook))
    with pytest.raises(UserError, match=sentence):
        Executed.read(run, "01_keys_and_values")


def test_command_line_prints_one_sentence_and_fails(tmp_path):
    command = [sys.executable, "-m", "helpers.book.build", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "is missing" in done.stderr


def test_subject_of_a_pair_file_reaches_the_prose(run):
    path = run / "notebooks" / "00_model_and_facts.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.append(code("glue('subject', 'Peru')", [glue("subject", "Peru", hidden=True)]))
    nbformat.write(notebook, path)
    words = page_words(Executed.read(run, "00_model_and_facts"))
    assert words == {
        "subject": "Peru",
        "target": "Tokyo",
        "model": "smollm2-135m",
        "profile": "smoke",
    }


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        ("git@github.com:someone/unlearning.git", "https://github.com/someone/unlearning"),
        ("https://github.com/someone/unlearning", "https://github.com/someone/unlearning"),
        ("/srv/git/unlearning.git", ""),
        ("https://token@git.example.org/a/b.git", ""),
    ],
)
def test_repository_links_only_to_github(monkeypatch, tmp_path, origin, url):
    monkeypatch.delenv("BOOK_REPOSITORY", raising=False)
    monkeypatch.setattr(book, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", origin], check=True)
    assert book._repository() == url


def test_network_and_heavy_pages_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<script src="https://cdn.example/x.js"></script>')
    (tmp_path / "b.html").write_text('<img src="big.png"><a href="https://fine.example">x</a>')
    (tmp_path / "big.png").write_bytes(b"0" * 3_500_000)
    (tmp_path / "c.css").write_text("@import url(//fonts.example/x.css);")
    problems = check(tmp_path)
    assert len(problems) == 3
    assert "cdn.example" in problems[0]
    assert "3.5 MB" in problems[1]


def test_durations_read_well():
    assert [duration_in_words(s) for s in (3.21, 41.7, 125, 59.7)] == [
        "3.2 s",
        "42 s",
        "2 min 5 s",
        "1 min 0 s",
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("the `key`s of `W_in`", "the ``key``\\ s of ``W_in``"),
        ("``as is`` and :class:`Run`", "``as is`` and :class:`Run`"),
        ("`` {glue:text}`name` ``", "``{glue:text}`name```"),
        ("|W enc| and `a | b | c`", r"\|W enc\| and ``a | b | c``"),
        ("(model, *, seed) → *x*, `a * b`, **c", r"(model, \*, seed) → *x*, ``a * b``, **c"),
    ],
)
def test_docstrings_in_plain_style_become_literals(written, shown):
    path = ROOT / "book" / "_ext" / "api_pages.py"
    spec = importlib.util.spec_from_file_location("api_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.as_literals(written) == shown


@pytest.mark.slow
def test_built_book_has_no_broken_internal_link(built):
    assert (built / "api" / "helpers" / "index.html").exists()
    assert broken_links(built) == []


@pytest.mark.slow
def test_pages_of_the_library_are_reached_from_each_other(built):
    page = "api/helpers/errors/index.html"
    package, library = "api/helpers/index.html", "book/api.html"
    for start, end in ((library, package), (package, page), (page, package), (page, library)):
        link = os.path.relpath(end, Path(start).parent)
        article = (built / start).read_text().partition("<article")[2]
        assert f'href="{link}"' in article, f"{start} has no link to {end}"


@pytest.mark.slow
def test_a_notebook_is_downloaded_whole_and_without_outputs(built):
    page = built / "notebooks" / "00_model_and_facts.html"
    (link,) = set(re.findall(r'href="([^"]+\.ipynb)"', page.read_text()))
    notebook = nbformat.read(page.parent / link, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_built_book_needs_no_network_and_is_light(built):
    assert check(built) == []
    page = (built / "notebooks" / "00_model_and_facts.html").read_text()
    assert "_static/mathjax/tex-chtml.js" in page
    assert (built / "_static" / "mathjax" / "tex-chtml.js").exists()


@pytest.mark.slow
def test_numbers_reach_the_landing_page(built):
    text = (built / "book" / "intro.html").read_text()
    assert "0.77" in text and "95 % interval 0.61 to 0.90" in text
    assert "211" in text
    assert "Tokyo" in text


@pytest.mark.slow
def test_pictures_that_chapters_saved_stand_on_the_landing_page(built):
    page = built / "book" / "intro.html"
    sources = [image["src"] for image in Page(page).images if "_images" in image.get("src", "")]
    assert {Path(source).name for source in sources} >= {"answer.svg", "under_attack.svg"}
    assert all((page.parent / source).exists() for source in sources)


@pytest.mark.slow
def test_chapters_carry_the_numbers_of_their_files(built):
    for path in (built / "notebooks").glob("[0-9]*.html"):
        number = re.search(r'<h1><span class="section-number">(\d+)\. ', path.read_text())
        assert int(number[1] if number else 0) == int(path.name[:2])


@pytest.mark.slow
def test_notebook_page_shows_figure_and_hides_progress(built):
    path = built / "notebooks" / "02_propagation.html"
    text = path.read_text()
    assert "progress bar" not in text
    assert "The effect, layer by layer." in text
    assert any(
        image.get("alt") == "A line that rises with the layer." for image in Page(path).images
    )
    assert "Provenance" in text
    assert "tag_injected-parameters" in text
    assert "tag_hide-cell" in text


@pytest.mark.slow
def test_status_page_lists_every_notebook(built):
    text = html.unescape((built / "book" / "status.html").read_text())
    for stem, title in TITLES.items():
        assert f"notebooks/{stem}.html" in text
        assert title.replace("'", "’") in text  # as Sphinx sets it
    assert text.count("42 s") == len(TITLES)
    assert text.count("passed</span>") == len(TITLES)
    assert "1,234 MB" in text


@pytest.mark.slow
def test_unchanged_book_is_not_built_again(built, book_sources, monkeypatch):
    monkeypatch.setattr(book, "ROOT", book_sources)
    index = built / "index.html"
    old_mtime = index.stat().st_mtime_ns
    assert book.build(built.parents[2]) == index
    assert index.stat().st_mtime_ns == old_mtime


@pytest.mark.slow
def test_a_warning_fails_the_build_and_keeps_the_last_book(run, tmp_path, monkeypatch):
    monkeypatch.setattr(book, "ROOT", copy_sources(tmp_path / "root"))
    index = book.build(run)
    path = run / "notebooks" / f"{list(TITLES)[-1]}.ipynb"
    original = path.read_text()
    path.write_text(original.replace("What does the model know?", "See {numref}`fig-nowhere`."))
    with pytest.raises(UserError, match=r"fig-nowhere.*book\.log"):
        book.build(run)
    path.write_text(original)
    assert index.exists()
    assert book.build(run) == index


def test_pages_name_no_folder_of_the_machine(run, tmp_path):
    path = run / "notebooks" / "01_keys_and_values.ipynb"
    notebook = nbformat.read(path, 4)
    edit_file = ROOT / "runs" / "mine" / "edit.safetensors"
    notebook.metadata["papermill"]["parameters"] = {
        "pair_file": "/home/somebody/facts/mine.yaml",
        "patch": str(edit_file),
        "saes": f"/data/a,{edit_file}",
        "model": "org/model",
    }
    nbformat.write(notebook, path)
    staged = book.stage(run, tmp_path / "stage")
    text = (staged / "notebooks" / path.name).read_text()
    assert "/home/somebody" not in text and "/data/" not in text and str(ROOT) not in text
    for shown in ("…/mine.yaml", "runs/mine/edit.safetensors", "…/a,runs/mine", "org/model"):
        assert shown in text
    assert '"papermill"' not in json.dumps(json.loads(text)["metadata"])


def test_what_the_clock_decided_can_be_quoted_and_stands_in_no_notebook(run, tmp_path):
    path = run / "artifacts" / "01_keys_and_values" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"times": {"slowest": "rome", "its_seconds": 3.5}}
    path.write_text(json.dumps(manifest))
    staged = book.stage(run, tmp_path / "stage")
    cells = nbformat.read(staged / "notebooks" / "01_keys_and_values.ipynb", 4).cells
    times = next(c for c in cells if c.get("id") == "times")
    glued = {o["metadata"]["scrapbook"]["name"]: o["data"] for o in times.outputs}
    assert list(glued["its_seconds"].values()) == ["3.5"]
    assert list(glued["slowest"].values()) == ["'rome'"]
    assert times.metadata.tags == ["remove-cell"]


def test_a_copy_of_the_quick_profile_says_on_every_page_that_it_is_not_to_be_read(built):
    pages = [built / "book" / "intro.html", built / "book" / "limits.html"]
    pages += [built / "notebooks" / f"{stem}.html" for stem in TITLES]
    assert all("do not read its numbers" in page.read_text() for page in pages)


def test_a_copy_of_another_profile_announces_nothing(run, tmp_path):
    for path in (run / "artifacts").glob("*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"profile": "default"}))
    staged = book.stage(run, tmp_path / "stage")
    assert "announcement" not in (staged / "_config.yml").read_text()
