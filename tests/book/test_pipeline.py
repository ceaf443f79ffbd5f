"""The pipeline as a user meets it, with tiny notebooks under the real Snakefile and papermill."""

import errno
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from fake_project import (
    FIRST,
    READS,
    SECOND,
    STEMS,
    Project,
    one_sentence,
    write_notebook,
)

from helpers.book import pipeline, records, run_lock
from helpers.book.environment import SPIN_COUNT, THREADS, environment
from helpers.book.pipeline import MOST_JOBS, _options, main, temporary_files
from helpers.book.progress import Progress, echo, remember_duration, step_durations
from helpers.book.records import (
    done_mark,
    input_hashes,
    mark_book,
    record,
    unmark_outdated,
    why_outdated,
)
from helpers.book.run_lock import holder, pipeline_lock, step_lock
from helpers.book.run_settings import (
    changed_settings,
    check_model_apart,
    read_settings,
    resolve,
    write_settings,
)
from helpers.book.settings import ROOT, validated
from helpers.book.sortable import SCRIPT
from helpers.book.sources import (
    DATA_FILES,
    DEFAULT_MODEL,
    model_fingerprint,
    notebook_data,
    notebook_hash,
    notebook_imports,
    notebook_path,
    upstream_notebooks,
)
from helpers.errors import UserError
from helpers.evaluation.kinds import FILES as KIND_FILES
from helpers.evaluation.kinds import RESULTS as KINDS
from helpers.evaluation.published import PUBLISHED
from helpers.evaluation.tuning import RECORD
from helpers.io.files import atomic_path
from helpers.io.hashing import file_hash
from helpers.io.manifest import step_folder
from helpers.io.run import Run

VERIFY = "09_verify"


@pytest.mark.slow
def test_a_change_reruns_only_what_uses_it(project):
    only = ("--only", FIRST, SECOND)
    out = project(*only).stdout
    assert f"[1/2] {FIRST}" in out and f"[2/2] {SECOND} · done in" in out
    executed = json.loads((project.run() / "notebooks" / f"{SECOND}.ipynb").read_text())
    assert not (project.run() / "logs" / f"{SECOND}.ipynb").exists()
    manifest = json.loads((project.run() / "artifacts" / SECOND / "manifest.json").read_text())
    assert manifest["settings"] == executed["metadata"]["papermill"]["parameters"]
    times = manifest["papermill"]
    assert times["duration"] > 0 and times["start_time"] < times["end_time"]
    assert len(times["cells"]) == len(executed["cells"]) and min(times["cells"]) >= 0

    assert "Nothing to do" in project(*only).stdout

    path = project.folder / "notebooks" / f"{FIRST}.ipynb"  # opened, run and saved in JupyterLab
    notebook = json.loads(path.read_text())
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    notebook["cells"][2]["execution_count"] = 7
    path.write_text(json.dumps(notebook))
    assert "Nothing to do" in project(*only).stdout

    project.notebook(SECOND, "changed = True")
    out = project(*only).stdout
    assert f"[1/1] {SECOND}" in out and "about 0:0" in out  # it knows from the last time
    assert (project.executions(FIRST), project.executions(SECOND)) == (1, 2)

    project.notebook(FIRST, "changed = True")  # the second reads its artifact, which is the same
    project(*only)
    assert (project.executions(FIRST), project.executions(SECOND)) == (2, 2)

    project.notebook(FIRST, "settings = settings.model_copy(update={'seed': 5})")
    project(*only)
    assert (project.executions(FIRST), project.executions(SECOND)) == (3, 3)


@pytest.mark.slow
def test_another_patch_under_the_same_name_is_verified_again(project):
    project.given = {"PYTHONIOENCODING": "ascii"}  # a terminal without the marks that we use
    patch = project.folder / "mine{b}.safetensors"
    patch.write_text("an edit")
    project.notebook(VERIFY, "from tqdm.auto import tqdm\nfor _ in tqdm([1]): pass\nobject()")
    only = ("--only", VERIFY, "--set", f"patch={patch}", "--name", "mine")
    project(*only)
    assert "Nothing to do" in project(*only).stdout
    made = [
        executed(project, "mine", VERIFY),
        step_folder(project.run("mine"), VERIFY) / "numbers.json",
    ]
    first_bytes = [path.read_bytes() for path in made]
    patch.write_text("another edit")
    project(*only)
    assert project.executions(VERIFY, "mine") == 2
    assert [path.read_bytes() for path in made] == first_bytes  # times stand in the manifest alone


@pytest.mark.slow
def test_resumes_after_a_kill_without_repeating_finished_steps(project):
    project.notebook(SECOND, "import time\nif settings.seed == 0: time.sleep(300)")
    process = project.started(SECOND)
    process.kill()  # the pipeline alone: the rest goes on
    process.wait()
    text = one_sentence(project("--only", SECOND, code=1))
    (number,) = re.findall(r"Another process \(process (\d+)\) works in", text)
    assert int(number) != process.pid and psutil.pid_exists(int(number))
    os.killpg(process.pid, signal.SIGKILL)
    while psutil.pid_exists(int(number)):
        time.sleep(0.1)
    assert project.executions(SECOND) == 1
    assert not (project.run() / "notebooks" / f"{SECOND}.ipynb").exists()

    project.notebook(SECOND)
    assert f"[1/1] {SECOND}" in project("--only", SECOND).stdout
    assert (project.executions(FIRST), project.executions(SECOND)) == (1, 2)
    assert (project.run() / "notebooks" / f"{SECOND}.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_pipeline_leaves_nothing_computing(project, stop_signal):
    project.notebook(FIRST, "import time\nwhile True: time.sleep(1)")
    process = project.started(FIRST)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 2  # Snakemake, the step, its kernel
    process.send_signal(stop_signal)  # to the pipeline alone, as `kill` does
    messages = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command goes on" in messages
    assert not psutil.wait_procs(started, timeout=5)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "name"), [("snakemake", "Snakemake"), ("helpers.book.steps", FIRST)]
)
def test_what_is_killed_is_told_and_takes_with_it_what_it_started(project, killed, name):
    project.notebook(FIRST, "import time\nwhile True: time.sleep(1)")
    process = project.started(FIRST)
    started = psutil.Process(process.pid).children(recursive=True)
    next(p for p in started if killed in p.cmdline()).kill()
    text = process.communicate(timeout=60)[1].strip()
    assert process.returncode == 1 and "\n" not in text
    assert text.startswith(f"{name} was killed (SIGKILL)") and "the same command goes on" in text
    assert not psutil.wait_procs(started, timeout=10)[1]


@pytest.mark.slow
def test_a_failing_cell_gives_its_cause_and_the_logs_place(project):
    project.notebook(FIRST, "print('so far so good')\n1 / 0")
    done = project("--only", FIRST, code=1)
    assert "cell 1 of 5" in done.stdout and "stopped after" in done.stdout
    text = one_sentence(done)
    log, half_run = (project.run() / "logs" / f"{FIRST}{end}" for end in (".log", ".ipynb"))
    assert "ZeroDivisionError: division by zero" in text and "In [4]" in text
    assert str(log) in text and str(half_run) in text
    assert "so far so good" in log.read_text() and "so far so good" in half_run.read_text()
    assert not (project.run() / "notebooks" / f"{FIRST}.ipynb").exists()
    assert project.executions(FIRST) == 1  # not tried again


@pytest.mark.slow
@pytest.mark.parametrize(("given", "expected"), [({}, "2"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_notebooks_share_the_cores_unless_the_user_has_set_threads(
    project, monkeypatch, given, expected
):
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    project.given = given
    project.notebook(FIRST, f"import os\nprint([os.environ[name] for name in {THREADS}])")
    project("--only", FIRST, "--cores", "4", "--jobs", "2")
    assert str([expected] * len(THREADS)) in executed(project, "default").read_text()


@pytest.mark.slow
def test_a_notebooks_user_error_is_told_as_its_sentence(project):
    project.notebook(
        FIRST, "from helpers.errors import UserError\nraise UserError('No layer 99: it has 30.')"
    )
    assert one_sentence(project("--only", FIRST, code=1)).startswith(
        f"{FIRST}: No layer 99: it has 30. The log is"
    )


@pytest.mark.slow
def test_a_killed_kernel_is_told_as_out_of_memory(project):
    project.notebook(FIRST, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    text = one_sentence(project("--only", FIRST, code=1))
    assert "kernel died" in text and "memory" in text and "PROFILE=smoke" in text


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(project):
    (project.folder / "cache").write_text("a file: no duration can be noted")
    project("--only", FIRST, "--name", "mine")
    settings = project.run("mine") / "settings.yaml"
    old_content = settings.read_text()
    other = ("--only", FIRST, "--name", "mine", "--set", "seed=3")
    text = one_sentence(project(*other, code=1))
    assert "other settings" in text and "seed 0, now 3" in text and "NAME=" in text
    assert settings.read_text() == old_content and project.executions(FIRST, "mine") == 1

    shutil.rmtree(project.run("mine") / ".snakemake")  # a copy without hidden files
    project(*other, "--update")
    assert project.executions(FIRST, "mine") == 2
    folder = step_folder(project.run("mine"), FIRST)
    assert json.loads((folder / "numbers.json").read_text()) == {"seed": 3}

    project.notebook(FIRST, "1 / (settings.seed - 4)")
    old_content = {p: p.read_bytes() for p in (*folder.iterdir(), executed(project, "mine"))}
    third = ("--only", FIRST, "--name", "mine", "--set", "seed=4", "--update")
    assert "ZeroDivisionError" in project(*third, code=1).stderr
    assert {
        p: p.read_bytes() for p in (*folder.iterdir(), executed(project, "mine"))
    } == old_content


def executed(project: Project, name: str = "default", stem: str = FIRST) -> Path:
    return project.run(name) / "notebooks" / f"{stem}.ipynb"


def test_bad_input_is_one_sentence_and_writes_nothing(project):
    assert "no profile 'smoek'" in one_sentence(project("--profile", "smoek", code=1))
    assert not (project.folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "default"),
        (["--set", "subject=France"], "default"),
        (["--profile", "smoke"], "smoke"),
        (["--set", "target=Tokyo", "--set", "subject=Japan"], "default-japan-tokyo"),
        (["--set", "seed=2", "--set", "n_shown=5"], "default-n_shown-5-seed-2"),
        (["--name", "mine", "--set", "seed=2"], "mine"),
    ],
)
def test_a_run_is_named_by_what_differs(arguments, name):
    assert resolve(_options(["book", *arguments]))["name"] == name


def test_paths_are_the_callers_not_the_notebooks(monkeypatch, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path)
    made = resolve(_options(["--set", "saes=one, two"]))["notebooks"]["06_edit_mlps"]
    assert made["saes"] == f"{tmp_path}/one,{tmp_path}/two"


def test_names_outside_ascii_stay_apart():
    names = {resolve(_options(["--set", f"subject={s}"]))["name"] for s in ("日本", "中国", "x")}
    assert len(names) == 3


def test_a_new_parameter_is_no_contradiction():
    old = {"notebooks": {"a": {"seed": 0}}}
    assert changed_settings(old, {"notebooks": {"a": {"seed": 0, "n": 1}, "b": {"seed": 0}}}) == []
    assert changed_settings(old, {"notebooks": {"a": {"seed": 1}}}) == ["seed 0, now 1"]


def test_a_damaged_settings_file_is_told(project):
    project.run().mkdir(parents=True)
    (project.run() / "settings.yaml").write_text("notebooks: [")
    assert "settings.yaml is damaged" in one_sentence(project(code=1))


def test_a_damaged_notebook_is_told(project):
    (project.folder / "notebooks" / f"{FIRST}.ipynb").write_text('{"cells": [')
    assert f"{FIRST}.ipynb is damaged" in one_sentence(project("--only", FIRST, code=1))


def test_one_process_at_a_time_works_in_a_run_folder(project):
    with pipeline_lock(project.run()):
        assert "Another process" in one_sentence(project("--only", FIRST, code=1))


def refused(capsys, *arguments: str) -> str:
    """The sentence that the front door answers with."""
    assert main(["notebooks", "--no-check", *arguments]) == 1
    printed, text = capsys.readouterr()
    assert not printed and text.startswith("\n") and text.endswith(".\n")
    assert text.strip().isprintable() and len(text) < 1000
    return text.strip()


@pytest.mark.parametrize(
    ("arguments", "message_part"),
    [
        (["--profile", "smoek"], "no profile 'smoek'"),
        (["--set", "subjct=Japan"], "did you mean subject"),
        (["--set", "n_subjects=many"], "n_subjects"),
        (["--set", "seed=-1"], "seed"),
        (["--set", "seed"], "name=value"),
        (["--set", "run=x"], "--name"),
        (["--name", "../x"], "no name for a run"),
        (["--only", "99_nothing"], "99_nothing"),
        (["--cores", "many"], "invalid int value"),
        (["--set", "pair_file=/no/such.yaml"], "/no/such.yaml"),
        (["--set", "patch=/no/such.safetensors"], "/no/such.safetensors"),
        (["--set", "saes=/no/such"], "no folder /no/such"),
        (["--cores", "-3"], "-3 is not between 1 and"),
        (["--jobs", "0"], "0 is not between 1 and"),
        (["--set", "attacks=logit_len"], "did you mean logit_lens"),
        (["--set", "n_facts=1000000000000"], "at most 100,000,000"),
        (["--set", "model="], "parameter 'model' is ''"),
        (["--set", "model=../no/such"], "There is no file or folder"),
        (["--set", "patch=" + "x" * 5000], "There is no file"),
        (["--set", "patch=a\0b"], "There is no file"),
        (["--set", "pair_file=~nosuchuser/x"], "There is no file"),
        (["--set", "saes=a\0b"], "There is no folder"),
        (["--set", "subject=\x1b[2J", "--set", "seed=\x1b[2J"], r"\x1b[2J"),
        (["--set", "\x1b[2J=3"], r"no parameter '\x1b[2J'"),
        (["--profile", "x" * 300 + ".yaml"], "no profile"),
        (["--name", "x" * 300], "120 at most"),
        (["--name", "\x1b[2J"], r"'\x1b[2J' is no name"),
        (["--runs", "/dev/null/x"], "Not a directory"),
    ],
)
def test_refused_input_is_one_printable_sentence(capsys, tmp_path, arguments, message_part):
    assert message_part in refused(capsys, "--runs", str(tmp_path / "runs"), *arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["", ".lock", ".steps.lock", "logs", "artifacts", "notebooks"])
def test_what_is_in_the_way_of_a_run_folder_is_named(capsys, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(exist_ok=True)
    if "lock" in name:
        path.mkdir()
    elif name == "notebooks":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.touch()
    text = refused(capsys, "--runs", str(tmp_path), "--name", "mine")
    assert str(path).rstrip("/") in text and "cannot be used" in text


def test_a_run_that_cannot_be_written_is_told(capsys, tmp_path, monkeypatch):
    for number, message_part in (
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "Permission denied"),
    ):

        def fails(*_, number=number):
            raise OSError(number, os.strerror(number), "somewhere")

        monkeypatch.setattr("helpers.book.pipeline.write_settings", fails)
        assert message_part in refused(capsys, "--runs", str(tmp_path), "--name", "mine")


def test_long_settings_get_a_name_that_a_folder_can_have():
    given = dict.fromkeys(("subject", "target", "relation", "model"), "x" * 300)
    names = {
        resolve(_options([w for k, v in (given | other).items() for w in ("--set", f"{k}={v}")]))[
            "name"
        ]
        for other in ({"scales": "1"}, {"scales": "2"}, {"target": "y" * 300})
    }
    assert len(names) == 3 and max(map(len, names)) <= 120


PAIR = """subject: Hermione
target: Granger
prompts: ["Harry Potter, Ron Weasley and {}", "Her best friends are Ron and {}", "Ron married {}"]
"""


def test_a_profiles_pair_file_is_the_runs_fact(tmp_path):
    (tmp_path / "pair.yaml").write_text(PAIR)
    profile = tmp_path / "mine.yaml"
    profile.write_text("common: {pair_file: pair.yaml}\n")
    arguments = ["--profile", str(profile)]
    resolved = resolve(_options(arguments))
    assert resolved["name"].startswith("mine-hermione-granger")
    for values in resolved["notebooks"].values():
        assert values["pair_file"] == str(tmp_path / "pair.yaml")
        assert (values["subject"], values["target"]) == ("Hermione", "Granger")
    assert (resolved["pair"]["subject"], resolved["pair"]["target"]) == ("Hermione", "Granger")

    (tmp_path / "pair.yaml").write_text(PAIR + "must_stay: [{prompt: Harry is at, answer: home}]\n")
    assert changed_settings(resolved, resolve(_options(arguments))) == ["the pair's file"]
    same = resolve(_options(["--set", f"pair_file={tmp_path}/pair.yaml"]))
    assert same["pair"] == resolve(_options(arguments))["pair"]

    for more in ("subject: Japan", "target: Tokyo"):
        profile.write_text(f"common: {{pair_file: pair.yaml, {more}}}\n")
        with pytest.raises(UserError, match=rf"says what {more.split(':')[0]} is"):
            resolve(_options(arguments))
    profile.write_text(f"{FIRST}: {{pair_file: pair.yaml}}\n")
    with pytest.raises(UserError, match="under 'common:'"):
        resolve(_options(arguments))


@pytest.mark.parametrize(
    "content",
    [
        "notebooks: [",
        "",
        "3",
        "[]",
        "profile: x",
        "profile: x\nnotebooks: []",
        "profile: x\nnotebooks: {a: 3}",
        "profile: 3\nnotebooks: {}",
        "profile: 2024-13-45",
        "profile: " + "[" * 3000,
        b"\xff\x00",
    ],
)
def test_settings_that_are_damaged_are_one_sentence(tmp_path, content):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"settings\.yaml is damaged .*delete it and run again"):
        read_settings(tmp_path)


def test_settings_are_read_as_they_were_written(tmp_path):
    given = ["subject=NO", "target=1.10\x1b[2J", "relation=日本 {x}", f"seed={2**63 - 1}"]
    settings = resolve(_options([w for g in given for w in ("--set", g)]))
    write_settings(tmp_path, settings)
    assert read_settings(tmp_path) == settings


def test_a_long_subject_reaches_the_check_of_the_model(monkeypatch):
    """It is longer than an argument can be; and no question is put to the caller's stdin."""
    monkeypatch.setattr("helpers.book.run_settings.Common.model_fields", {"subject": 0, "model": 0})

    def run(command, *, input, **_):
        assert json.loads(input)["subject"] == "x" * 200_000 and len(str(command)) < 1000
        return subprocess.CompletedProcess(command, -9, "", "")

    monkeypatch.setattr("helpers.book.run_settings.subprocess.run", run)
    with pytest.raises(UserError, match=r"was killed.*memory"):
        check_model_apart({FIRST: {"subject": "x" * 200_000, "model": "m"}})


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run folder whose first two steps are up to date; `values` and what they are made from."""
    monkeypatch.setenv("UNLEARNING_NOTEBOOKS", str(tmp_path / "notebooks"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "model").mkdir()
    for name in ("patch", "model/weights"):
        (tmp_path / name).write_text(name)
    for stem in (FIRST, SECOND, VERIFY):
        write_notebook(tmp_path / "notebooks", stem)
    given = {"run": str(tmp_path / "run"), "model": str(tmp_path / "model")}
    values = {stem: validated(stem, given).model_dump() for stem in (FIRST, SECOND)}
    values[VERIFY] = validated(VERIFY, given | {"patch": str(tmp_path / "patch")}).model_dump()
    done = Made(tmp_path / "run", values)
    for stem in values:
        done.make(stem)
    return done


@dataclass
class Made:
    """A run folder and its parameters by stem."""

    folder: Path
    values: dict[str, dict[str, Any]]

    def make(self, stem: str, **numbers: Any) -> None:
        """What a step does, without a kernel."""
        settings = validated(stem, self.values[stem])
        run = Run(self.folder, stem, settings)
        if stem in READS:
            run.load("numbers", step=READS[stem])
        run.save("numbers", {"seed": settings.seed} | numbers)
        notebook = self.folder / "notebooks" / f"{stem}.ipynb"
        with atomic_path(notebook) as temporary:
            temporary.write_text(f"executed with {settings.seed} {numbers}")
        run.finish()
        record(step_folder(self.folder, stem), notebook, input_hashes(stem, self.values[stem]), {})
        with atomic_path(done_mark(self.folder, stem)) as temporary:
            temporary.touch()

    def why(self, stem: str) -> str:
        return why_outdated(self.folder, stem, input_hashes(stem, self.values[stem]))

    def todo(self) -> list[str]:
        """Steps whose mark is taken away."""
        unmark_outdated(self.folder, self.values)
        return [stem for stem in self.values if not done_mark(self.folder, stem).exists()]


def test_what_is_made_is_up_to_date_wherever_it_lies(made, tmp_path):
    assert made.todo() == []
    shutil.copytree(made.folder, tmp_path / "copy", copy_function=shutil.copyfile)  # no times
    copy = Made(tmp_path / "copy", {s: v | {"run": "copy"} for s, v in made.values.items()})
    assert copy.todo() == []
    copy.values[SECOND] |= {"seed": 3}
    assert copy.why(SECOND) == "settings changed" and copy.todo() == [SECOND]


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"seed": 1}'])
def test_a_step_whose_files_are_missing_or_differ_is_made_again(made, content):
    for path in (
        step_folder(made.folder, FIRST) / "numbers.json",
        step_folder(made.folder, FIRST) / "manifest.json",
        made.folder / "notebooks" / f"{FIRST}.ipynb",
    ):
        path.unlink() if content is None else path.write_bytes(content)
        assert path.name in made.why(FIRST) or "manifest" in made.why(FIRST)
        assert made.todo() == [FIRST, SECOND]  # and what reads it, which finds the same there
        made.make(FIRST)
        assert made.why(SECOND) == "" and made.todo() == [SECOND]
        made.make(SECOND)
        assert made.todo() == []


def test_a_step_is_made_again_when_what_it_is_made_from_changes(made, tmp_path, monkeypatch):
    made.make(FIRST, other=1)
    assert made.why(SECOND) == f"{FIRST}/numbers.json changed"
    made.make(SECOND)
    write_notebook(tmp_path / "notebooks", SECOND, "other = 1")
    assert made.why(SECOND) == "cells changed" and made.todo() == [SECOND]
    (tmp_path / "patch").write_text("other")
    assert made.why(VERIFY) == "patch changed" and made.why(FIRST) == ""
    (tmp_path / "model" / "weights").write_text("others")
    assert "model changed" in made.why(FIRST)
    made.make(FIRST)
    monkeypatch.setattr(records, "versions", lambda: {"torch": "0"})
    assert made.why(FIRST) == "versions changed"
    monkeypatch.undo()
    monkeypatch.setenv("UNLEARNING_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setattr(records, "notebook_imports", lambda _: [ROOT / "Makefile"])
    assert made.why(FIRST) == "code changed"


def test_a_step_that_was_run_by_hand_is_made_again(made):
    run = Run(made.folder, FIRST, validated(FIRST, made.values[FIRST]))
    run.save("numbers", {"seed": 0})
    run.finish()
    assert made.why(FIRST) == "it was not made by the pipeline"


def test_the_book_is_made_again_when_a_chapter_or_an_address_changes(made, monkeypatch):
    index = made.folder / records.INDEX
    index.parent.mkdir(parents=True)
    index.touch()

    def marked() -> bool:
        unmark_outdated(made.folder, made.values)
        return done_mark(made.folder, "book").exists()

    mark_book(made.folder, list(made.values))
    assert marked()
    monkeypatch.setenv("BOOK_URL", "https://example.org")
    assert not marked()
    mark_book(made.folder, list(made.values))
    assert marked()
    made.make(FIRST, other=1)
    assert not marked()
    mark_book(made.folder, list(made.values))
    index.unlink()
    assert not marked()


def test_a_step_that_outlived_its_pipeline_keeps_the_folder(tmp_path):
    with pipeline_lock(tmp_path):
        pass
    message = rf"process {os.getpid()}\) works in"
    with step_lock(tmp_path), pytest.raises(UserError, match=message), pipeline_lock(tmp_path):
        pass
    with pipeline_lock(tmp_path) as lock:
        os.ftruncate(lock, 0)
        os.write(lock, f"{holder(os.getpid())}{holder(99999999)}".encode())  # the last has died
        with pytest.raises(UserError, match=rf"process {os.getpid()}\)"), pipeline_lock(tmp_path):
            pass
        os.write(lock, b"99999999@node7 ")  # may live
        with (
            pytest.raises(UserError, match=r"process 99999999 on node7\)"),
            pipeline_lock(tmp_path),
        ):
            pass


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", fails)
    with pipeline_lock(tmp_path), step_lock(tmp_path):
        pass
    assert fcntl.flock is fails


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "→ · é"), ("latin-1", "-> - é"), ("ascii", r"-> - \xe9")]
)
def test_a_terminal_shows_what_it_has_characters_for(encoding, shown):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    echo("→ · é", stream)
    assert raw.getvalue().decode(encoding) == f"{shown}\n"


def test_a_closed_terminal_is_no_reason_to_stop(monkeypatch):
    closed = io.StringIO()
    closed.close()
    echo("x", closed)
    monkeypatch.setattr(sys, "stdout", None)
    echo("x")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_no_file_of_a_run_takes_the_place_of_a_closed_terminal(closed):
    code = (
        "import os; from helpers.book.progress import open_standard_streams as o; o(); "
        "assert [os.readlink(f'/proc/self/fd/{n}') for n in (1,)] == [os.devnull]; "
        "assert os.open(os.devnull, os.O_RDONLY) > 2; assert os.get_inheritable(1)"
    )
    command = f'"{sys.executable}" -c "{code}" {closed}'
    assert subprocess.run(command, shell=True, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "parallel", "shown"),
    [
        (30, False, "cell 1 of 5 · 0:30 · about 1:10 left · 2:50 for everything"),
        (99.8, False, "cell 1 of 5 · 1:40 · about 0:01 left · 1:40 for everything"),
        (100, False, "cell 1 of 5 · 1:40"),
        (500, False, "cell 1 of 5 · 8:20"),
        (30, True, "cell 1 of 5 · 0:30 · about 1:10 left"),
    ],
)
def test_a_step_that_takes_longer_than_it_did_shows_no_remaining_time(
    monkeypatch, seconds, parallel, shown
):
    plan = {"steps": ["a", "b"], "expected": {"a": 100, "b": 100}, "parallel": parallel}
    monkeypatch.setenv("UNLEARNING_PLAN", json.dumps(plan))
    progress = Progress("a", total=5)
    monkeypatch.setattr(Progress, "seconds", seconds)
    assert progress.line() == shown


@pytest.mark.parametrize(
    ("cores", "gigabytes", "changed", "expected"),
    [
        (2, 24, {}, 2),
        (1, 24, {}, 1),
        (16, 128, {}, MOST_JOBS),
        (8, 15, {}, 2),  # as many as memory has room for
        (8, 2, {}, 1),
        (8, 64, {"device": "cuda"}, 1),
        (8, 64, {"model": "gpt2"}, 1),
    ],
)
def test_as_many_notebooks_run_at_a_time_as_cores_and_memory_allow(
    monkeypatch, cores, gigabytes, changed, expected
):
    memory = SimpleNamespace(total=gigabytes * 2**30)
    monkeypatch.setattr(pipeline.psutil, "virtual_memory", lambda: memory)
    values = {"device": "cpu", "model": DEFAULT_MODEL} | changed
    assert pipeline._jobs(cores, values) == expected


@pytest.mark.parametrize("content", [b"", b"[]", b'{"default": 3}', b'{"default": {"a": "x"}}'])
def test_durations_that_are_damaged_are_forgotten(tmp_path, monkeypatch, content):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path))
    (tmp_path / "durations.json").write_bytes(content)
    assert "a" not in step_durations("default")
    remember_duration("default", "a", 1.23)
    assert step_durations("default")["a"] == 1.2


def test_a_duration_that_cannot_be_noted_is_not_noted(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("UNLEARNING_CACHE", str(place))
        remember_duration("default", "a", 1.0)
        assert "a" not in step_durations("default")


def test_a_relative_cache_counts_from_the_callers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNING_CACHE", "mycache")
    assert environment()["UNLEARNING_CACHE"] == str(tmp_path / "mycache")


def test_threads_wait_as_the_user_has_set_or_else_sleep_soon(monkeypatch):
    policies = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for given in ({}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        for name in policies:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        told = {name: environment()[name] for name in policies if name in environment()}
        assert told == (given or {"GOMP_SPINCOUNT": SPIN_COUNT})
        shown = make("-f", "Makefile", "-f", "-", "show", text=SHOWN).stdout  # what tests get
        assert dict(line.split("=") for line in shown.split()) == told


def test_temporary_files_of_a_killed_run_go_with_the_next(tmp_path):
    with temporary_files(tmp_path) as place:
        (Path(place) / "kernel.json").touch()
    assert not Path(place).exists() and os.listdir(tmp_path) == []
    leftover = Path(tempfile.mkdtemp(prefix="unlearning-"))
    other = tmp_path / "others" / "unlearning-x"
    other.mkdir(parents=True)
    for target in (leftover, other):  # the second is named by a run folder that came from elsewhere
        (tmp_path / ".tmp").symlink_to(target)
        with temporary_files(tmp_path):
            pass
    assert not leftover.exists() and other.exists()


def test_sources_follow_imports(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = write_notebook(folder, SECOND, "%time\nfrom helpers.models import load_model")
    used = [p.relative_to(ROOT).as_posix() for p in notebook_imports(path)]
    assert "helpers/models/loading.py" in used and "helpers/errors.py" in used
    assert "helpers/book/settings.py" not in used and "helpers/book/pipeline.py" not in used
    assert upstream_notebooks(path, STEMS) == [FIRST]
    assert upstream_notebooks(path, [SECOND, FIRST]) == [FIRST]  # wherever they stand in the book
    old_hash = notebook_hash(path)
    write_notebook(folder, SECOND, "other = 1")
    assert notebook_hash(path) != old_hash


def test_a_changed_local_model_is_another_model(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    old_hash = model_fingerprint(str(tmp_path))
    assert old_hash == model_fingerprint(str(tmp_path))
    weights.write_bytes(b"22")
    assert model_fingerprint(str(tmp_path)) != old_hash
    assert model_fingerprint("smollm2-135m") and not model_fingerprint("gpt2")


SHOWN = "show:\n\t@env | grep -E '^(GOMP_SPINCOUNT|OMP_WAIT_POLICY)='\n"  # a rule of make


def make(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
    # Without what a make that runs these tests hands down.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, input=text, capture_output=True, text=True
    )


def test_make_passes_values_on_as_they_were_typed():
    done = make("-n", "book", "SUBJECT=Côte d'Ivoire", "SET=n_shown=3 seed=2", "UPDATE=1")
    line = done.stdout.splitlines()[-1]
    assert """--set subject='Côte d'\\''Ivoire'""" in line
    assert "--set 'n_shown=3' --set 'seed=2'" in line and "--update" in line


def test_make_and_the_shell_expand_nothing_that_was_typed(tmp_path):
    """Neither for the command nor, as make would by itself, for its environment."""
    mark = f"$(shell touch {tmp_path}/mark)"
    line = make("-n", "run", "SET=subject=A$AP x=$$y", f"TARGET={mark}").stdout.splitlines()[-1]
    assert "--set 'subject=A$AP' --set 'x=$$y'" in line and f"--set target='{mark}'" in line
    done = make("run", f"SUBJECT={mark}", f"ONLY=`touch {tmp_path}/mark`")
    assert "invalid choice: '`touch'" in done.stderr
    assert os.listdir(tmp_path) == []


def test_make_verify_compares_the_model_with_its_original():
    done = make("-n", "verify", "ORIGINAL=it's base", "MODEL=$x/y z", "RETRAINED=`a`")
    line = done.stdout.splitlines()[-1]
    assert """--set model='it'\\''s base' --set checkpoint='$x/y z'""" in line
    assert "--set retrained='`a`'" in line and line.endswith("--only 09_verify")
    assert line.rindex("--set model=") == line.index("--set model='it")  # the last one counts
    line = make("-n", "verify", "MODEL=gpt2", "PATCH=a b").stdout.splitlines()[-1]
    assert "--set model='gpt2'" in line and "--set patch='a b'" in line
    assert "checkpoint" not in line
    done = make("-n", "verify", "ORIGINAL=gpt2")
    assert done.returncode and "Give MODEL=... too" in done.stderr


def test_make_refuses_a_variable_that_it_does_not_know():
    done = make("-n", "book", "SUBJET=Japan")
    assert done.returncode and "no variable SUBJET" in done.stderr


def test_make_help_lists_every_target():
    text = make("help").stdout
    assert all(f"  {t} " in text for t in ("book", "test", "lab", "check", "bench", "clean"))


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_profiles_load():
    for path in sorted((ROOT / "profiles").glob("*.yaml")):
        assert isinstance(yaml.safe_load(path.read_text()) or {}, dict)


def test_a_chapter_depends_on_the_measurements_in_the_repository_that_it_reads(monkeypatch):
    assert [p.name for p in notebook_data(notebook_path("07_training_methods"))] == [RECORD.name]
    assert notebook_data(notebook_path("00_model_and_facts")) == []
    named = {file for files in DATA_FILES.values() for file in files}
    kinds = {KINDS / name for name in KIND_FILES}
    assert named == {PUBLISHED, RECORD, SCRIPT} | kinds
    assert all((ROOT / module).is_file() for module in DATA_FILES)
    stems = ("00_model_and_facts", "07_training_methods")
    values = {s: validated(s, {}).model_dump(mode="json") for s in stems}
    before = {stem: input_hashes(stem, values[stem]) for stem in stems}
    monkeypatch.setattr(
        records, "file_hash", lambda path: file_hash(path) + "!" * (path.name == RECORD.name)
    )
    after = {stem: input_hashes(stem, values[stem]) for stem in stems}
    assert [stem for stem in stems if before[stem] != after[stem]] == ["07_training_methods"]
