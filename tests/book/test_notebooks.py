"""The real notebooks: one run of the whole pipeline with another fact, and its book."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from pages import Page, broken_links

from helpers.book.check import check
from helpers.book.profiles import load_profile
from helpers.book.settings import NOTEBOOKS, ROOT
from helpers.book.sources import notebook_code, upstream_notebooks
from helpers.io.files import read_json

pytestmark = pytest.mark.slow

WANTED = {"subject": "Japan", "target": "Tokyo", "profile": "smoke"}
PICTURES = ("image/png", "image/svg+xml")


def smoke(what: str, *given: str) -> None:
    """The pipeline with the smoke profile, to its end."""
    command = [sys.executable, "-m", "helpers.book.pipeline", what, "--profile", "smoke", *given]
    command += ["--jobs", "2"]  # other workers of the test run end earlier and leave their cores
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run of everything, `make book PROFILE=smoke SUBJECT=Japan TARGET=Tokyo`."""
    runs = tmp_path_factory.mktemp("runs")
    smoke("book", "--set", "subject=Japan", "--set", "target=Tokyo", "--runs", str(runs))
    (folder,) = (path for path in runs.iterdir() if (path / "settings.yaml").exists())
    return folder


@pytest.fixture(scope="module")
def html(run) -> Path:
    return run / "book" / "_build" / "html"


def executed(run: Path, stem: str) -> nbformat.NotebookNode:
    return nbformat.read(run / "notebooks" / f"{stem}.ipynb", 4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook_ran_to_its_end_with_these_parameters(run, stem):
    notebook = executed(run, stem)
    parameters = notebook.metadata["papermill"]["parameters"]
    assert {name: parameters[name] for name in WANTED} == WANTED
    assert notebook.metadata["papermill"]["exception"] is None
    for cell in code_cells(notebook):
        assert cell.execution_count, f"not executed: {cell.source[:80]}"
        assert not [o for o in cell.outputs if o.output_type == "error"]


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_figure_shows_something(run, stem):
    from PIL import Image

    figures = [
        c for c in code_cells(executed(run, stem)) if "figure" in c.metadata.get("mystnb", {})
    ]
    assert figures
    for cell in figures:
        name = cell.metadata["mystnb"]["figure"]["name"]
        data = [o.data for o in cell.outputs if "data" in o and set(PICTURES) & set(o.data)]
        assert data, f"{name} is empty"
        if "image/png" in data[0]:
            image = Image.open(io.BytesIO(base64.b64decode(data[0]["image/png"]))).convert("RGB")
            assert min(image.size) > 100
            darkest, lightest = image.convert("L").getextrema()
            assert lightest - darkest > 100, f"{name} is blank"


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_artifacts_and_manifest_are_there(run, stem):
    folder = run / "artifacts" / stem
    manifest = read_json(folder / "manifest.json")
    assert manifest["step"] == stem
    assert {name: manifest["settings"][name] for name in WANTED} == WANTED
    assert "numbers.json" in manifest["outputs"]
    assert all((folder / name).stat().st_size for name in manifest["outputs"])
    numbers = read_json(folder / "numbers.json")
    assert (numbers["subject"], numbers["target"]) == ("Japan", "Tokyo")


def test_the_book_has_no_broken_link_and_needs_no_network(html):
    assert (html / "index.html").is_file()
    assert broken_links(html) == []
    assert check(html) == []  # pages of at most 3 MB, nothing from elsewhere
    weight = sum(path.stat().st_size for path in html.rglob("*") if path.is_file())
    assert weight <= 35 * 2**20


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_pages_show_results_and_no_machinery(html, stem):
    path = html / "notebooks" / f"{stem}.html"
    text = path.read_text()
    for trace in ("Traceback (most recent call last)", "{glue", "glue:text", "Warning:", "100%|"):
        assert trace not in text, trace
    figures = [i for i in Page(path).images if "_images/" in i.get("src", "")]
    assert figures
    assert all(image.get("alt") for image in figures)
    assert "Tokyo" in text
    assert "Provenance" in text


def test_prose_pages_have_their_numbers(html):
    for path in (html / "book").glob("*.html"):
        text = path.read_text()
        assert "{glue" not in text.replace("`{glue", ""), path.name
        assert "Traceback" not in text


def papermill(stem: str, out: Path, *parameters: str) -> subprocess.CompletedProcess:
    """`papermill notebooks/<stem>.ipynb out.ipynb -p name value ...` from the repository's root."""
    command = [str(Path(sys.executable).parent / "papermill"), f"notebooks/{stem}.ipynb", str(out)]
    command += [x for p in parameters for x in ("-p", *p.split("=", 1))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def needs_another(stem: str) -> bool:
    """Whether a notebook reads another's artifact without asking first whether it is there."""
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    asks = any(call in notebook_code(path) for call in ("run.path(", "sae_folders("))
    return bool(upstream_notebooks(path, list(NOTEBOOKS))) and not asks


READERS = [stem for stem in NOTEBOOKS if needs_another(stem)]


def test_a_notebook_runs_by_itself_as_the_readme_says(tmp_path):
    stem = next(s for s in NOTEBOOKS if s not in READERS)
    values = load_profile("smoke", WANTED | {"run": str(tmp_path / "run")}).notebooks[stem]
    defaults = load_profile("default").notebooks[stem]
    given = [f"{name}={value}" for name, value in values.items() if value != defaults[name]]
    done = papermill(stem, tmp_path / "out.ipynb", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = read_json(tmp_path / "run" / "artifacts" / stem / "numbers.json")
    assert (numbers["subject"], numbers["target"]) == ("Japan", "Tokyo")
    assert len(code_cells(nbformat.read(tmp_path / "out.ipynb", 4))) > 3


def test_the_readmes_pair_file_runs_and_a_request_is_verified(tmp_path):
    """A pair with prompts and a relation of its own, and an edit that has no weights."""
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    only = ["00_model_and_facts", "03_deleting_neurons", "09_verify"]
    given = ("--set", f"pair_file={tmp_path}/mine.yaml", "--set", "method=in_context")
    smoke("notebooks", *given, "--runs", f"{tmp_path}/runs", "--name", "mine", "--only", *only)
    folder = tmp_path / "runs" / "mine" / "artifacts"
    for stem in only:
        numbers = read_json(folder / stem / "numbers.json")
        assert (numbers["subject"], numbers["target"]) == ("Hermione", "Granger")
    assert read_json(folder / "09_verify" / "numbers.json")["edit_under_test"] == "in_context"


@pytest.mark.parametrize("stem", READERS)
def test_a_missing_artifact_names_the_command_that_makes_it(tmp_path, stem):
    done = papermill(stem, tmp_path / "out.ipynb", f"run={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "is missing: run notebooks/" in done.stderr
    assert "make book" in done.stderr
