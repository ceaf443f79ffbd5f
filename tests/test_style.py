"""Formatting, lint and types are tests like the others, so that CI is one command."""

import json
import subprocess
import sys

import pytest

from helpers.book.settings import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("arguments", [["format", "--check"], ["check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(arguments):
    command = [sys.executable, "-m", "ruff", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run 'make format', or look at:\n{done.stdout}{done.stderr}"


def test_mypy_has_nothing_to_say(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count"), "run 'make format'"
        assert "papermill" not in cell["metadata"], "run 'make format'"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_cell_has_an_id_of_its_own(path):
    """Or JupyterLab renames one of them when the notebook is saved."""
    ids = [cell["id"] for cell in json.loads(path.read_text())["cells"]]
    assert sorted(set(ids)) == sorted(ids)
