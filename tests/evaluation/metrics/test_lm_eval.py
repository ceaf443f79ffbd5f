"""A benchmark in the harness's format: deterministic, ours and theirs agree, before and after."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from peers import peer_python

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.evaluation.metrics.lm_eval import (
    FORGET,
    INSTALL,
    RETAIN,
    Item,
    accuracy,
    factbook_items,
    harness_choices,
    own_choices,
    write_tasks,
)
from helpers.facts import ConceptPair
from helpers.forward.scoring import answer_logprobs
from helpers.methods import unlearn

KENYA = ConceptPair("Kenya", "Nairobi")


def test_items_are_deterministic_and_hold_the_truth_once():
    items = factbook_items(KENYA, n=40, seed=1)
    assert items == factbook_items(KENYA, n=40, seed=1)
    assert items != factbook_items(KENYA, n=40, seed=2)
    assert len(items[RETAIN]) == 40
    assert {q.about for q in items[FORGET]} == {"Kenya (capital)"}
    assert "Kenya (capital)" not in {q.about for q in items[RETAIN]}
    for q in (*items[FORGET], *items[RETAIN]):
        assert len(set(q.choices)) == 4
    assert {q.choices[q.answer] for q in items[FORGET]} == {"Nairobi"}
    assert len({q.answer for q in items[RETAIN]}) == 4  # no place gives it away
    with pytest.raises(UserError, match="other facts: ask for 1 to"):
        factbook_items(KENYA, n=100_000)


def test_the_likeliest_choice_by_hand(tiny_model):
    model = tiny_model()
    items = {"t": [Item("w1 w2", ("w3", "w4 w5"), 1, ""), Item("w6", ("w7", "w8", "w9"), 0, "")]}
    table = own_choices(model, items)
    expected = answer_logprobs(
        model, ["w1 w2"] * 2 + ["w6"] * 3, [" w3", " w4 w5", " w7", " w8", " w9"]
    )
    assert np.allclose(table["logprob"], expected)
    right = [expected[1] > expected[0], expected[2] == expected[2:].max()]
    assert accuracy(table)["t"].value == np.mean(right)


def test_files_are_what_the_harness_reads(tmp_path):
    items = factbook_items(KENYA, n=3)
    folder = write_tasks(tmp_path / "tasks", items)
    config = yaml.safe_load((folder / f"{RETAIN}.yaml").read_text())
    assert (config["task"], config["output_type"]) == (RETAIN, "multiple_choice")
    data = Path(config["dataset_kwargs"]["data_files"]["test"])
    read = [json.loads(line) for line in data.read_text().splitlines()]
    assert [(d["question"], d["choices"][d["answer"]]) for d in read] == [
        (q.question, q.choices[q.answer]) for q in items[RETAIN]
    ]


def test_without_the_harness_the_way_to_get_it_is_told(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install lm_eval"):
        harness_choices(tiny_model(), factbook_items(KENYA, n=2), tmp_path)


RUN = """
import sys
from pathlib import Path
import pandas as pd
from transformers import PreTrainedTokenizerFast
from helpers.evaluation.metrics.lm_eval import factbook_items, harness_choices
from helpers.facts import ConceptPair
from helpers.methods import load_unlearning
from helpers.models import load_model
model = load_model(sys.argv[1])
model.tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
items = factbook_items(ConceptPair("Kenya", "Nairobi"), n=30)
out = Path(sys.argv[2])
harness_choices(model, items, out / "tasks").to_parquet(out / "before.parquet")
with load_unlearning(out / "edit.safetensors").applied(model):
    harness_choices(model, items, out / "tasks").to_parquet(out / "after.parquet")
"""


@pytest.mark.slow
def test_the_harness_and_we_agree_before_and_after_an_edit(knowing, taught, tmp_path):
    model, (folder, _) = knowing(), taught
    edit = unlearn(model, KENYA, "mean_difference", layers=(1,))
    edit.save(tmp_path / "edit.safetensors")
    quiet = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [peer_python("lm_eval", INSTALL.split()[-1]), "-c", RUN, folder, tmp_path]
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    items = factbook_items(KENYA, n=30)
    ours = {"before": own_choices(model, items)}
    with edit.applied(model):
        ours["after"] = own_choices(model, items)
    for name, table in ours.items():
        theirs = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert np.allclose(theirs["logprob"], table["logprob"], atol=1e-3), name
        assert theirs["right"].equals(table["right"])
        assert accuracy(theirs) == accuracy(table)
    assert not np.allclose(ours["before"]["logprob"], ours["after"]["logprob"])  # it was edited
