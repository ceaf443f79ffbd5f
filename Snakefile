# The pipeline of one run: a rule a notebook, then the book.
#
# 'make book' and 'make run' call it through helpers/pipeline.py, which checks the parameters and
# writes settings.yaml first. Inside a run folder it also works by itself, for example to use
# another executor:  snakemake -s Snakefile --directory runs/default --nolock --executor slurm ...
#
# Paths are relative to the run folder, so a run can be moved together with its clone.
# There is no 'retries:' here: a cell that fails would fail again and cost minutes. A kernel that
# did not start is the one thing worth another try, and helpers/steps.py does that.
import os
import sys
from pathlib import Path

import yaml

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))

from helpers.artifacts import versions
from helpers.sources import helpers_used, model_stamp, notebook_hash, steps_read

NOTEBOOKS = Path(config.get("notebooks", ROOT / "notebooks"))
JOBS = int(config.get("jobs", 1))  # notebooks at a time; each gets its share of the cores
SETTINGS = yaml.safe_load(Path("settings.yaml").read_text())
PYTHON = sys.executable
STEMS = list(SETTINGS["notebooks"])


def here(paths):
    return [os.path.relpath(path) for path in paths]


def tracked(folder, pattern):
    """Files under a folder without what tools leave there."""
    left = {"__pycache__", ".ipynb_checkpoints", "_build"}
    return sorted(p for p in folder.rglob(pattern) if p.is_file() and not left & set(p.parts))


onstart:
    shell("mkdir -p notebooks logs artifacts")


rule book:
    input:
        notebooks=expand("notebooks/{stem}.ipynb", stem=STEMS),
        manifests=expand("artifacts/{stem}/manifest.json", stem=STEMS),
        pages=here(tracked(ROOT / "book", "*") + tracked(ROOT / "benchmarks", "*.json")),
        helpers=here(tracked(ROOT / "helpers", "*.py")),  # the API reference shows them all
        config=here([ROOT / "_config.yml", ROOT / "requirements.lock"]),
    output:
        # Not index.html itself: Snakemake deletes outputs first, and the last book should stay
        # where it is when a new one fails. helpers/pipeline.py removes this if the book is gone.
        touch("logs/book.done"),
    params:
        address=[os.environ.get(name, "") for name in ("BOOK_REPOSITORY", "BOOK_BRANCH", "BOOK_URL")],
    shell:
        "exec {PYTHON:q} -m helpers.steps . book"


rule notebooks:
    input:
        rules.book.input.notebooks,


for number, stem in enumerate(STEMS):
    source = NOTEBOOKS / f"{stem}.ipynb"
    own = [SETTINGS["notebooks"][stem].get(name) for name in ("pair_file", "patch")]

    rule:
        name:
            stem
        input:
            notebook=ancient(here([source])),  # its cells count (below), not when it was saved
            helpers=here(helpers_used(source)),
            earlier=expand("artifacts/{stem}/manifest.json", stem=steps_read(source, STEMS)),
            own=here([path for path in own if path]),
        output:
            notebook=f"notebooks/{stem}.ipynb",
            manifest=f"artifacts/{stem}/manifest.json",
        params:
            cells=notebook_hash(source),
            settings=SETTINGS["notebooks"][stem],
            versions=versions(),
            model=model_stamp(SETTINGS["notebooks"][stem]["model"]),
            source=os.path.relpath(source),
            stem=stem,
        priority: len(STEMS) - number  # in the order of the chapters
        threads: max(1, workflow.cores // JOBS)
        shell:
            "exec {PYTHON:q} -m helpers.steps . {params.stem:q} --source {params.source:q}"
