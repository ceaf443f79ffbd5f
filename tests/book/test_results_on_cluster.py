"""The published results as jobs of a cluster: which jobs, in which order, with which command."""

import re
import subprocess
import sys

import pytest

from helpers.book.settings import ROOT
from helpers.errors import UserError

sys.path.append(str(ROOT / "benchmarks"))

import results_on_cluster


def test_strengths_are_chosen_on_all_development_parts_before_a_held_out_part(tmp_path):
    arguments = ["--methods", "rome, memit"]
    scheduling = ["--cores", "1", "--dry-run", "--printshellcmds"]
    command = results_on_cluster.command(tmp_path, 3, arguments, scheduling)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    jobs = re.split(r"^rule ", done.stdout + done.stderr, flags=re.M)[1:]
    names = [job.partition(":")[0] for job in jobs]
    assert names == ["dev"] * 3 + ["strengths"] + ["heldout"] * 3 + ["results"]
    calls = [re.search(r"full_results\.py (.+)", job)[1] for job in jobs]
    assert all("--methods 'rome, memit' " in call for call in calls)
    assert {call[-3:] for call in calls[:3]} == {call[-3:] for call in calls[4:7]}
    assert all("--facts 0" in call for call in calls[:4])
    assert all("--facts 0" not in call for call in calls[4:7])


def test_a_machine_that_cannot_submit_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["results", "--cluster", "slurm"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch"):
        results_on_cluster.main()
