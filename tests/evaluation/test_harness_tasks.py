"""Tasks of lm-evaluation-harness by name: offline, and without the harness."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from peers import peer_python

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.evaluation.harness_tasks import COLUMNS, harness_scores
from helpers.evaluation.metrics.lm_eval import (
    FORGET,
    INSTALL,
    RETAIN,
    accuracy,
    factbook_items,
    own_choices,
    write_tasks,
)
from helpers.facts import ConceptPair

RUN = """
import sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from helpers.errors import UserError
from helpers.evaluation.harness_tasks import harness_scores
from helpers.models import load_model
model = load_model(sys.argv[1])
model.tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
out = Path(sys.argv[2])
names = ["factbook_forget", "factbook_retain"]
harness_scores(model, names, folder=out / "tasks").to_parquet(out / "scores.parquet")
for name in ("factbook_forgot", "hellaswag"):  # one that is not there, one whose data is not
    try:
        harness_scores(model, [name], folder=out / "tasks")
    except UserError as error:
        print(error)
"""


def test_without_the_harness_the_way_to_get_it_is_told(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install lm_eval"):
        harness_scores(tiny_model(), ["arc_easy"])


@pytest.mark.slow
def test_tasks_by_name_score_as_we_do_and_missing_ones_are_told(knowing, taught, tmp_path):
    model, (folder, _) = knowing(), taught
    items = factbook_items(ConceptPair("Kenya", "Nairobi"), n=30)
    write_tasks(tmp_path / "tasks", items)
    quiet = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    quiet["HF_HOME"] = str(tmp_path / "hub")  # without what the machine has downloaded before
    command = [peer_python("lm_eval", INSTALL.split()[-1]), "-c", RUN, folder, tmp_path]
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert list(scores.columns) == COLUMNS
    scores = scores[scores["metric"] == "acc"].set_index("task")
    ours = accuracy(own_choices(model, items))
    for task in (FORGET, RETAIN):
        assert scores.loc[task, "value"] == pytest.approx(ours[task].value)
        assert scores.loc[task, "n"] == ours[task].n
    unknown, without_data = done.stdout.strip().splitlines()[-2:]
    assert "no task 'factbook_forgot'; did you mean factbook_forget" in unknown
    assert "could not run hellaswag" in without_data
