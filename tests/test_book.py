"""The book: staging, a strict build of a small run, and what the pages must satisfy."""

import base64
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pages import Page, broken_links

from helpers import book
from helpers.book_check import check
from helpers.book_pages import Executed, duration, substitutions
from helpers.errors import UserError

ROOT = Path(__file__).parents[1]


def title_of(path: Path) -> str:
    """The first heading of a notebook."""
    text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1].strip()


TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
TITLES = {  # of the chapters, by the stems of their notebooks
    Path(name).name: title_of(ROOT / f"{name}.ipynb")
    for name in book._toc_files(TOC)
    if name.startswith("notebooks/")
}
GLUED = {  # what tests look for on the prose pages
    "pair_mean": 0.7654,
    "pair_interval": "95 % interval 0.61 to 0.90",
    "n_capitals": 211,
}


def quoted(stem: str) -> dict[str, float]:
    """The numbers of a notebook that the prose pages quote."""
    pages = "".join(path.read_text() for path in (ROOT / "book").glob("*.md"))
    keys = re.findall(rf"`/notebooks/{stem}\.ipynb::(\w+)", pages)
    return {key: GLUED.get(key, 0.5) for key in keys}


def picture() -> str:
    """A small real figure, as base64 PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 10, 20, 30], [0.1, 0.2, 0.7, 0.8], label="patched")
    axes.axhline(0.05, color="grey", linestyle="--", label="baseline")
    axes.set(xlabel="layer", ylabel="share of the answer moved")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return base64.b64encode(buffer.getvalue()).decode()


def glue(key: str, value: float | str, *, hidden: bool = False) -> dict:
    """What `myst_nb.glue(key, value, display=not hidden)` leaves in a notebook."""
    prefix = "application/papermill.record/" if hidden else ""
    return new_output(
        "display_data",
        data={f"{prefix}text/plain": repr(value)},
        metadata={"scrapbook": {"mime_prefix": prefix, "name": key}},
    )


def code(source: str, outputs: list | None = None, count: int = 1, **metadata) -> dict:
    return new_code_cell(source, outputs=outputs or [], execution_count=count, metadata=metadata)


def fake_notebook(stem: str) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it, in the form of the book's chapters."""
    name = "fig-" + stem[:2]
    figure = {"mystnb": {"figure": {"name": name, "caption": "The effect, layer by layer."}}}
    figure["mystnb"]["image"] = {"alt": "A line that rises with the layer."}
    cells = [
        new_markdown_cell(
            f"# {TITLES[stem]}\n\n**What does the model know?** See {{numref}}`{name}`."
        ),
        code('subject: str = "France"  # what the fact is about', tags=["parameters"]),
        code('# Parameters\nsubject = "Japan"\ntarget = "Tokyo"', tags=["injected-parameters"]),
        new_markdown_cell(
            "## A prediction\n\nThe answer is a sum, $z = W_U\\,\\sum_l m_l$"
            " {cite:p}`geva2021keyvalue`, read at the {term}`residual stream`:\n\n"
            "$$\n\\mathrm{MLP}(x) = \\sum_i \\sigma(k_i^\\top x)\\, v_i\n$$"
        ),
        code(
            "effect = patch(model, pair)\neffect.mean()  # (layers,)",
            [
                new_output("stream", name="stderr", text="100%|#####| progress bar"),
                new_output("execute_result", data={"text/plain": "0.42"}, execution_count=3),
            ],
            count=3,
        ),
        code(
            "plots.effect(effect)",
            [new_output("display_data", data={"image/png": picture(), "text/plain": "<Figure>"})],
            tags=["hide-input"],
            **figure,
        ),
        new_markdown_cell(
            "## Exercises\n\n```{exercise}\n:label: ex-"
            + stem[:2]
            + "\nTry another country.\n```\n\n"
            "```{solution} ex-" + stem[:2] + "\n:class: dropdown\nGive `-p subject Japan`.\n```"
        ),
    ]
    if numbers := quoted(stem):
        outputs = [glue(*item, hidden=True) for item in numbers.items()]
        cells.append(code("glue(...)", outputs, tags=["remove-cell"]))
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "version": "3.11"},
        "papermill": {
            "duration": 41.7,
            "exception": None,
            "start_time": "2026-11-24T10:00:00",
            "end_time": "2026-11-24T10:00:41.700000",
            "parameters": {"subject": "Japan", "target": "Tokyo", "run": "runs/x"},
        },
    }
    return new_notebook(cells=cells, metadata=metadata)


def fake_run(folder: Path) -> Path:
    """A run folder with the executed notebooks of the contents, and their manifests."""
    (folder / "notebooks").mkdir(parents=True)
    for stem in TITLES:
        nbformat.write(fake_notebook(stem), folder / "notebooks" / f"{stem}.ipynb")
        manifest = {
            "step": stem,
            "settings": {
                "model": "smollm2-135m",
                "subject": "Japan",
                "target": "Tokyo",
                "relation": "capital",
                "pair_file": "",
            },
            "seeds": [0],
            "profile": "smoke",
            "model_hash": "0123456789abcdef",
            "inputs": {},
            "outputs": {"known.parquet": "fedcba9876543210"},
            "commit": "abcdef012345",
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "started": "2026-11-24T10:00:00+00:00",
            "seconds": 40.1,
            "peak_memory_mb": 1234,
        }
        path = folder / "artifacts" / stem / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return fake_run(tmp_path / "run")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The HTML folder of a fake run's book, from a copy of the sources that nobody edits."""
    root = tmp_path_factory.mktemp("root")
    for name in ("book", "helpers", "benchmarks"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "_config.yml", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "ROOT", root)
        yield book.build(fake_run(tmp_path_factory.mktemp("runs") / "smoke")).parent


def test_injected_parameters_are_folded_and_others_are_not(run, tmp_path):
    staged = book.stage(run, tmp_path / "stage")
    notebook = nbformat.read(staged / "notebooks" / "01_keys_and_values.ipynb", 4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert ["injected-parameters", "hide-cell"] in tags
    assert ["parameters"] in tags


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
    command = [sys.executable, "-m", "helpers.book", str(tmp_path / "nowhere")]
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
    words = substitutions(Executed.read(run, "00_model_and_facts"))
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
    assert [duration(s) for s in (3.21, 41.7, 125, 59.7)] == [
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
def test_unchanged_book_is_not_built_again(built):
    index = built / "index.html"
    before = index.stat().st_mtime_ns
    assert book.build(built.parents[2]) == index
    assert index.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_warning_fails_the_build_and_keeps_the_last_book(built):
    run = built.parents[2]
    path = run / "notebooks" / f"{list(TITLES)[-1]}.ipynb"
    original = path.read_text()
    path.write_text(original.replace("What does the model know?", "See {numref}`fig-nowhere`."))
    with pytest.raises(UserError, match=r"fig-nowhere.*book\.log"):
        book.build(run)
    path.write_text(original)
    assert (built / "index.html").exists()
    assert book.build(run) == built / "index.html"
