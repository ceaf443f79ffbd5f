"""A project with tiny notebooks, which the real pipeline, Snakefile and papermill run."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from helpers.book.settings import NOTEBOOKS, ROOT

FIRST, SECOND, THIRD, FOURTH = STEMS = list(NOTEBOOKS)[:4]
READS = {SECOND: FIRST, THIRD: SECOND}  # which notebook reads another's artifact


def parameters_cell(stem: str) -> str:
    fields = NOTEBOOKS[stem].model_fields.items()
    return "\n".join(f"{n}: {f.annotation.__name__} = {f.default!r}  # x" for n, f in fields)


def write_notebook(folder: Path, stem: str, code: str = "") -> Path:
    """A notebook that counts its executions in `count`, runs `code`, and saves an artifact."""
    read = f"run.load('numbers', step='{READS[stem]}')" if stem in READS else ""
    cells = [
        ("parameters", parameters_cell(stem)),
        (
            "",
            "from helpers.io.run import Run\nfrom helpers.book.settings import from_notebook\n"
            f"settings = from_notebook('{stem}', globals())\n"
            f"run = Run(settings.run_folder(), '{stem}', settings)\n"
            f"print(1, file=open(run.folder / '{stem}.count', 'a'))\n{read}",
        ),
        ("", code),
        ("", "run.save('numbers', {'seed': settings.seed})\n_ = run.finish()"),
    ]
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell{i}",
                "metadata": {"tags": [tag]} if tag else {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for i, (tag, source) in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = folder / f"{stem}.ipynb"
    path.write_text(json.dumps(notebook))
    return path


@dataclass
class Project:
    """Tiny notebooks in `folder/notebooks`, runs in `folder/runs`."""

    folder: Path
    given: dict[str, str] = field(default_factory=dict)  # over the environment

    def command(self, *arguments: str) -> list[str]:
        places = ["--runs", f"{self.folder}/runs", "--notebooks", f"{self.folder}/notebooks"]
        return [sys.executable, "-m", "helpers.book.pipeline", *arguments, "--no-check", *places]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"UNLEARNING_CACHE": str(self.folder / "cache")} | self.given

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            self.command("notebooks", *arguments),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def started(self, stem: str) -> subprocess.Popen:
        """The pipeline in a session of its own, as soon as the notebook is being executed."""

        def hears():  # a suite that was started in the background ignores what Ctrl-C sends
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        process = subprocess.Popen(
            self.command("notebooks", "--only", stem),
            cwd=ROOT,
            env=self.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hears,
        )
        deadline = time.monotonic() + 120
        while not self.executions(stem) and time.monotonic() < deadline:
            time.sleep(0.2)
        return process

    def notebook(self, stem: str, code: str = "") -> Path:
        return write_notebook(self.folder / "notebooks", stem, code)

    def run(self, name: str = "default") -> Path:
        return self.folder / "runs" / name

    def executions(self, stem: str, name: str = "default") -> int:
        path = self.run(name) / f"{stem}.count"
        return len(path.read_text().split()) if path.exists() else 0


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project(tmp_path / "brace {x} {subject} # y: 'z'")  # what templates and YAML read
    (project.folder / "notebooks").mkdir(parents=True)
    for stem in NOTEBOOKS:
        project.notebook(stem)
    return project


def one_sentence(done: subprocess.CompletedProcess) -> str:
    text = done.stderr.strip()
    assert "\n" not in text and text.endswith("."), text
    return text
