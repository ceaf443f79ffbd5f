"""Steps as jobs of a cluster: on a real Slurm of one node, and what is told when it cannot be."""

import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fake_project import FIRST, FOURTH, SECOND, one_sentence
from one_node_slurm import missing_programs, one_node_slurm

from helpers.book import pipeline, steps
from helpers.book.cluster import CLUSTER_VARIABLE, CLUSTERS, Cluster, load_cluster
from helpers.book.pipeline import _snakemake, main
from helpers.book.run_settings import write_settings
from helpers.book.settings import NOTEBOOKS, ROOT
from helpers.errors import UserError

PROFILE = CLUSTERS / "slurm" / "config.yaml"
GREEDY = "08_evaluate"  # the step that takes too much memory


@pytest.fixture
def slurm():
    if reason := missing_programs():
        pytest.skip(reason)
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("the plugin of requirements-cluster.txt is not installed")
    with one_node_slurm() as environment:
        yield environment


def jobs(environment: dict[str, str], form: str) -> list[str]:
    done = subprocess.run(
        ["squeue", "--noheader", f"--format={form}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_book_on_slurm_goes_on_past_killed_jobs_and_resumes(slurm, project):
    project.given = slurm
    profile = re.sub(r"(status-checks: )\d+", r"\g<1>1", PROFILE.read_text())  # is told sooner
    profile = re.sub(rf"({GREEDY}: {{mem_mb: )\d+", r"\g<1>1500", profile)
    config = project.folder / "cluster" / "config.yaml"
    config.parent.mkdir()
    config.write_text(profile)
    go = project.folder / "go"
    first_time = f"import os, time\nif not os.path.exists({str(go)!r}): "
    project.notebook(FIRST, first_time + "time.sleep(600)")
    greed = "x = b'1' * 2**31; time.sleep(600)"  # bytes: more than its job may have
    project.notebook(GREEDY, first_time + greed)
    arguments = ("--only", SECOND, FOURTH, GREEDY, "--cluster", str(config.parent))
    process = subprocess.Popen(
        project.command("notebooks", *arguments),
        cwd=ROOT,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 180
        while not all(project.executions(stem) for stem in (FIRST, FOURTH, GREEDY)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        (job,) = [line.split() for line in jobs(slurm, "%i %k %C %m %l") if FIRST in line]
        number = job[0]
        assert job[2:] == ["2", "4000M", "30:00"]  # cores, memory and time of the profile

        refused = one_sentence(project(*arguments, code=1))  # by the jobs, not by locks
        assert "scancel" in refused and number in refused
        subprocess.run(["scancel", number], env=os.environ | slurm, check=True)
        shown, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 1
    assert f"{FIRST} · job {number}" in shown and f"{FOURTH} · done" in shown
    cancelled, killed = told.strip().splitlines()
    assert cancelled.startswith(f"{FIRST} (job {number}) was cancelled")
    assert killed.startswith(GREEDY) and f"raise mem_mb of {GREEDY} in {config}" in killed
    for sentence in (cancelled, killed):
        assert Path(re.search(r"The log is (.+)\.$", sentence)[1]).is_file()

    go.touch()
    shown = project(*arguments).stdout
    assert "3 steps to do" in shown and f"{SECOND} · done" in shown
    executions = [project.executions(stem) for stem in (FIRST, SECOND, FOURTH, GREEDY)]
    assert executions == [2, 1, 1, 2]
    assert (project.run() / "notebooks" / f"{SECOND}.ipynb").exists()


def test_the_profile_gives_resources_to_each_step():
    profile = yaml.safe_load(PROFILE.read_text())
    assert set(profile["set-threads"]) == {*NOTEBOOKS, "book"}
    assert set(profile["set-resources"]) == {*NOTEBOOKS, "book"}
    assert profile["keep-going"] is True


def test_a_job_asks_for_a_gpu_where_its_notebook_computes_on_one(tmp_path):
    values = {FIRST: {"device": "cuda"}, FOURTH: {"device": "cpu"}}
    write_settings(tmp_path, {"profile": "default", "notebooks": values})
    command = _snakemake(tmp_path, [FIRST, FOURTH], ["--dry-run", "--cores", "1"])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    rules = re.split(r"^rule ", done.stdout + done.stderr, flags=re.M)[1:]
    assert {text.partition(":")[0]: "gpu=1" in text for text in rules} == {
        FIRST: True,
        FOURTH: False,
    }


def refused(capsys, tmp_path, name: str) -> str:
    """The sentence that the front door answers with."""
    command = ["notebooks", "--no-check", "--runs", str(tmp_path / "runs"), "--cluster", name]
    assert main(command) == 1
    printed, text = capsys.readouterr()
    assert not printed and text.startswith("\n") and text.endswith(".\n") and text.count("\n") == 2
    assert not (tmp_path / "runs").exists()
    return text


@pytest.mark.parametrize("name", ["", "slrum", "/no/such", "a\0b", "\x1b[2J" * 100])
def test_an_unknown_cluster_is_refused(capsys, tmp_path, name):
    text = refused(capsys, tmp_path, name)
    assert "There is no cluster" in text and "CLUSTER is slurm, or a folder" in text


@pytest.mark.parametrize("content", ["jobs: 3", "executor: 3", "executor: ../x", "- a", ""])
def test_a_profile_without_an_executor_is_refused(capsys, tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    assert "names no executor" in refused(capsys, tmp_path, str(tmp_path))


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """Stand-ins for the plugin and for commands of Slurm that reach nobody."""
    settings = SimpleNamespace(implies_no_shared_fs=False)
    name = "snakemake_executor_plugin_slurm"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(common_settings=settings))
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in ("sbatch", "squeue"):
        (folder / command).write_text("#!/bin/sh\necho Unable to connect >&2\nexit 1\n")
        (folder / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return name


def test_a_cluster_without_its_plugin_is_refused(capsys, tmp_path, plugin, monkeypatch):
    (tmp_path / "config.yaml").write_text("executor: no-such-one")
    text = refused(capsys, tmp_path, str(tmp_path))
    assert "pip install snakemake-executor-plugin-no-such-one'" in text

    monkeypatch.setitem(sys.modules, plugin, None)
    (path,) = re.findall(
        rf"'{sys.executable} -m pip install -r (\S+)'", refused(capsys, tmp_path, "slurm")
    )
    assert "snakemake-executor-plugin-slurm==" in Path(path).read_text()


def test_a_cluster_without_sbatch_is_refused(capsys, tmp_path, plugin, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "by sbatch, which is not installed here" in refused(capsys, tmp_path, "slurm")


def test_a_cluster_whose_jobs_share_no_files_is_refused(capsys, tmp_path, plugin):
    sys.modules[plugin].common_settings.implies_no_shared_fs = True
    assert "run the whole book in one job" in refused(capsys, tmp_path, "slurm")


def test_a_slurm_that_does_not_answer_is_told(capsys, tmp_path, plugin):
    assert "does not answer (squeue: Unable to connect)" in refused(capsys, tmp_path, "slurm")


def test_the_shipped_cluster_takes_limits_for_all_its_jobs(plugin):
    options = load_cluster("slurm").options(cores=8, jobs=None)
    assert options == ["--profile", str(PROFILE.parent), "--cores", "8"]


REPORT = """\
Error in rule 06_edit_mlps:
    message: SLURM-job '12' failed, SLURM status is: '{state}'. Detailed failure reason unavailable
    jobid: 1
    log: {log} (check log file(s) for error details)
    shell:
        exec env python -m helpers.book.steps . 06_edit_mlps
    external_jobid: 12
Exiting because a job execution failed. Look above for error messages
"""


@pytest.mark.parametrize(
    ("state", "words", "advice"),
    [
        ("OUT_OF_MEMORY", None, "raise mem_mb of 06_edit_mlps in"),
        ("FAILED", "error: Detected 1 oom_kill event in StepId=12.0", "raise mem_mb of"),
        ("FAILED", "exceeded memory limit (9 > 6)\n*** STEP CANCELLED AT x ***", "raise mem_mb of"),
        ("TIMEOUT", None, "raise runtime of 06_edit_mlps in"),
        ("CANCELLED", "*** JOB 12 CANCELLED AT x DUE TO TIME LIMIT ***", "raise runtime of"),
        ("CANCELLED", "*** JOB 12 CANCELLED AT x ***", "was cancelled"),
        ("NODE_FAIL", None, "lost its node"),
        ("FAILED", "OSError: [Errno 28] No space left on device", "free some space"),
        ("FAILED", None, "see whether its node has"),
    ],
)
def test_an_ended_job_is_told_with_its_log_and_what_to_do(tmp_path, state, words, advice):
    job_log, log = tmp_path / "{12}.log", tmp_path / "snakemake.log"
    if words:
        job_log.write_text(words)
    log.write_text(REPORT.format(state=state, log=job_log))
    failures = Cluster(PROFILE, "slurm").failures(tmp_path, log)
    text = failures.pop("06_edit_mlps")
    assert not failures and text.startswith("06_edit_mlps (job 12) ") and advice in text
    assert text.endswith(f"The log is {job_log}.") and "\n" not in text
    if "raise" in advice:
        assert str(PROFILE) in text


def test_a_refused_job_is_told_with_the_schedulers_words(tmp_path):
    log = tmp_path / "snakemake.log"
    log.write_text(
        "Error in rule 06_edit_mlps:\n"
        "    message: SLURM sbatch failed. The error message was 'sbatch: error: Memory "
        "specification can not be satisfied\nsbatch: error: Batch job submission failed'.\n"
    )
    text = Cluster(PROFILE, "slurm").failures(tmp_path, log)["06_edit_mlps"]
    assert "was refused (Memory specification can not be satisfied)" in text and str(log) in text


def test_what_becomes_of_jobs_is_shown(tmp_path, capsys):
    log = tmp_path / "snakemake.log"
    log.touch()
    with Cluster(PROFILE, "other").watched(tmp_path, log, [FIRST, SECOND]):
        log.write_text(
            f"Job 4 has been submitted with SLURM jobid 7 (log: /x y/rule_{FIRST}/7.log).\n"
            f"Finished jobid: 4 (Rule: {FIRST})\nError in rule {SECOND}:\nError in rule other:\n"
        )
    assert capsys.readouterr().out.splitlines() == [
        f"[1/2] {FIRST} · job 7",
        f"[1/2] {FIRST} · done",
        f"[2/2] {SECOND} · failed",
    ]


def fails_with(monkeypatch, tmp_path, error: BaseException | None) -> str:
    """What a step leaves in its `.failed` file when it raises an error."""

    def execute(*_):
        raise error

    monkeypatch.setattr(steps, "_end_with_parent", lambda: None)
    monkeypatch.setattr(steps, "input_hashes", lambda *_: {})
    monkeypatch.setattr(steps, "execute", execute)
    write_settings(tmp_path, {"profile": "default", "notebooks": {FIRST: {}}})
    with pytest.raises((SystemExit, OSError)):
        steps.main([str(tmp_path), FIRST])
    return (tmp_path / "logs" / f"{FIRST}.failed").read_text()


def test_a_node_without_the_cache_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv(CLUSTER_VARIABLE, str(PROFILE))
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    text = fails_with(monkeypatch, tmp_path, None)
    assert text.startswith(f"{FIRST}: Node ") and f"has no {tmp_path}/cache" in text
    assert "UNLEARNING_CACHE=" in text and f"The log is {tmp_path}/logs/{FIRST}.log." in text


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_told_by_the_step(monkeypatch, tmp_path, wrapped):
    sentence = "The disk is full: x was not written; free some space and run again."
    error = UserError(sentence) if wrapped else OSError(errno.ENOSPC, "No space left on device")
    text = fails_with(monkeypatch, tmp_path, error)
    assert text.startswith(FIRST) and "free some space" in text
    assert f"The log is {tmp_path}/logs/{FIRST}.log." in text


def test_a_disk_too_full_for_a_sentence_is_told(monkeypatch, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{FIRST}.failed").touch()
    text = pipeline._written_causes(tmp_path, [FIRST, SECOND])[FIRST]
    assert "found the disk full" in text and f"{FIRST}.log" in text
    log = tmp_path / "logs" / "snakemake.log"
    log.touch()  # Snakemake's own last words found no room
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert "is full: free some space" in pipeline._snakemake_cause(log)


def test_a_memory_error_on_a_cluster_names_the_profile(monkeypatch):
    monkeypatch.setenv(CLUSTER_VARIABLE, str(PROFILE))
    assert f"Raise mem_mb of {FIRST} in {PROFILE}" in steps._memory_advice(FIRST)


def test_make_passes_the_cluster_on():
    done = subprocess.run(
        ["make", "-n", "verify", "CLUSTER=slurm"], cwd=ROOT, capture_output=True, text=True
    )
    assert "--cluster 'slurm'" in done.stdout
