# The pipeline of one run: a rule a notebook, then the book.
#
# 'make book' and 'make run' call it through helpers/book/pipeline.py, which checks the parameters and
# writes settings.yaml first. Inside a run folder it also works by itself, for example to use
# another executor:  snakemake -s Snakefile --directory runs/default --nolock --executor slurm ...
#
# On this machine each notebook gets its share of the cores, 'threads'. For jobs of a cluster a profile
# in profiles/clusters says how many, and gives memory and time.
#
# A rule's output is not what its step makes but a mark that the step is up to date: Snakemake
# deletes outputs before it runs a rule, and what was made last should stay when a step fails.
# helpers/book/records.py takes the mark away from what is not up to date. Times of files say nothing,
# hence 'ancient', so a run can be moved or copied.
# There is no 'retries:' here: a cell that fails would fail again and cost minutes. A kernel that
# did not start is the one thing worth another try, and helpers/book/steps.py does that.
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from helpers.book.environment import chosen_threads
from helpers.book.records import BOOK, unmark_outdated
from helpers.book.run_settings import read_settings
from helpers.book.sources import notebook_path, upstream_notebooks

SETTINGS = read_settings(Path("."))
PYTHON = sys.executable
THREADS = chosen_threads()  # by default what Snakemake sets, the rule's
STEMS = list(SETTINGS["notebooks"])

if workflow.is_main_process:  # not on the node of a cluster that a step was sent to
    unmark_outdated(Path("."), SETTINGS["notebooks"])


rule book:
    input:
        ancient(expand("logs/{stem}.done", stem=STEMS)),
    output:
        f"logs/{BOOK}.done",
    shell:
        "exec {PYTHON:q} -m helpers.book.steps . book"


rule notebooks:
    input:
        rules.book.input,


for number, stem in enumerate(STEMS):

    rule:
        name:
            stem
        input:
            ancient(expand("logs/{stem}.done", stem=upstream_notebooks(notebook_path(stem), STEMS))),
        output:
            touch(f"logs/{stem}.done"),
        params:
            stem=stem,
        priority: len(STEMS) - number  # in the order of the chapters
        threads: int(config.get("threads", 1))
        resources:
            **({"gpu": 1} if SETTINGS["notebooks"][stem]["device"] != "cpu" else {}),
        shell:
            "exec env {THREADS} {PYTHON:q} -m helpers.book.steps . {params.stem:q}"
