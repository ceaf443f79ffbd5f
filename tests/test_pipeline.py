"""The pipeline as a user meets it, with tiny notebooks under the real Snakefile and papermill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from helpers.pipeline import locked
from helpers.runs import differences
from helpers.settings import NOTEBOOKS, ROOT
from helpers.sources import helpers_used, model_stamp, notebook_hash, steps_read

FIRST, SECOND, THIRD, _ = STEMS = list(NOTEBOOKS)[:4]
VERIFY = "09_verify"
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
            "from helpers.artifacts import Run\nfrom helpers.settings import from_notebook\n"
            f"settings = from_notebook('{stem}', globals())\n"
            f"run = Run(settings.run_folder(), '{stem}', settings)\n"
            f"print(1, file=open(run.folder / '{stem}.count', 'a'))\n{read}",
        ),
        ("", code),
        ("", "run.save('numbers', {'seed': settings.seed})\nrun.finish()"),
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

    def command(self, *arguments: str) -> list[str]:
        places = ["--runs", f"{self.folder}/runs", "--notebooks", f"{self.folder}/notebooks"]
        return [sys.executable, "-m", "helpers.pipeline", *arguments, "--no-check", *places]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"UNLEARNING_CACHE": str(self.folder / "cache")}

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
    (tmp_path / "notebooks").mkdir()
    project = Project(tmp_path)
    for stem in NOTEBOOKS:
        project.notebook(stem)
    return project


def one_sentence(done: subprocess.CompletedProcess) -> str:
    text = done.stderr.strip()
    assert "\n" not in text and text.endswith("."), text
    return text


@pytest.mark.slow
def test_a_change_reruns_only_what_uses_it(project):
    only = ("--only", FIRST, SECOND)
    out = project(*only).stdout
    assert f"[1/2] {FIRST}" in out and f"[2/2] {SECOND} · done in" in out
    executed = json.loads((project.run() / "notebooks" / f"{SECOND}.ipynb").read_text())
    assert executed["metadata"]["papermill"]["duration"] > 0
    assert all(cell["metadata"]["papermill"]["duration"] >= 0 for cell in executed["cells"])
    assert not (project.run() / "logs" / f"{SECOND}.ipynb").exists()
    manifest = json.loads((project.run() / "artifacts" / SECOND / "manifest.json").read_text())
    assert manifest["settings"] == executed["metadata"]["papermill"]["parameters"]

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
    patch = project.folder / "mine.safetensors"
    patch.write_text("an edit")
    project.notebook(VERIFY)
    only = ("--only", VERIFY, "--set", f"patch={patch}", "--name", "mine")
    project(*only)
    assert "Nothing to do" in project(*only).stdout
    patch.write_text("another edit")
    project(*only)
    assert project.executions(VERIFY, "mine") == 2


@pytest.mark.slow
def test_resumes_after_a_kill_without_repeating_finished_steps(project):
    project.notebook(SECOND, "import time\nif settings.seed == 0: time.sleep(300)")
    process = project.started(SECOND)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert project.executions(SECOND) == 1
    assert not (project.run() / "notebooks" / f"{SECOND}.ipynb").exists()

    project.notebook(SECOND)
    assert f"[1/1] {SECOND}" in project("--only", SECOND).stdout
    assert (project.executions(FIRST), project.executions(SECOND)) == (1, 2)
    assert (project.run() / "notebooks" / f"{SECOND}.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_pipeline_leaves_nothing_computing(project, how):
    project.notebook(FIRST, "import time\nwhile True: time.sleep(1)")
    process = project.started(FIRST)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 2  # Snakemake, the step, its kernel
    process.send_signal(how)  # to the pipeline alone, as `kill` does
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command goes on" in told
    assert not psutil.wait_procs(started, timeout=5)[1]


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
    project("--only", FIRST, "--name", "mine")
    settings = project.run("mine") / "settings.yaml"
    before = settings.read_text()
    other = ("--only", FIRST, "--name", "mine", "--set", "seed=3")
    text = one_sentence(project(*other, code=1))
    assert "other settings" in text and "seed 0, now 3" in text and "NAME=" in text
    assert settings.read_text() == before and project.executions(FIRST, "mine") == 1

    project(*other, "--update")
    assert project.executions(FIRST, "mine") == 2
    saved = json.loads((project.run("mine") / "artifacts" / FIRST / "numbers.json").read_text())
    assert saved == {"seed": 3}


@pytest.mark.parametrize(
    ("arguments", "told"),
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
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(project, arguments, told):
    assert told in one_sentence(project(*arguments, code=1))
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
    from helpers.pipeline import _options
    from helpers.runs import resolve

    assert resolve(_options(["book", *arguments]))["name"] == name


def test_paths_are_the_callers_not_the_notebooks(monkeypatch, tmp_path):
    from helpers.pipeline import _options
    from helpers.runs import resolve

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path)
    made = resolve(_options(["--set", "saes=one, two"]))["notebooks"]["06_edit_mlps"]
    assert made["saes"] == f"{tmp_path}/one,{tmp_path}/two"


def test_names_outside_ascii_stay_apart():
    from helpers.pipeline import _options
    from helpers.runs import resolve

    names = {resolve(_options(["--set", f"subject={s}"]))["name"] for s in ("日本", "中国", "x")}
    assert len(names) == 3


def test_a_new_parameter_is_no_contradiction():
    old = {"notebooks": {"a": {"seed": 0}}}
    assert differences(old, {"notebooks": {"a": {"seed": 0, "n": 1}, "b": {"seed": 0}}}) == []
    assert differences(old, {"notebooks": {"a": {"seed": 1}}}) == ["seed 0, now 1"]


def test_a_damaged_settings_file_is_told(project):
    project.run().mkdir(parents=True)
    (project.run() / "settings.yaml").write_text("notebooks: [")
    assert "settings.yaml is damaged" in one_sentence(project(code=1))


def test_a_damaged_notebook_is_told(project):
    (project.folder / "notebooks" / f"{FIRST}.ipynb").write_text('{"cells": [')
    assert f"{FIRST}.ipynb is damaged" in one_sentence(project("--only", FIRST, code=1))


def test_one_process_at_a_time_works_in_a_run_folder(project):
    with locked(project.run()):
        assert "Another process" in one_sentence(project("--only", FIRST, code=1))


def test_sources_follow_imports(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = write_notebook(folder, SECOND, "%time\nfrom helpers.models import load_model")
    used = [p.relative_to(ROOT).as_posix() for p in helpers_used(path)]
    assert "helpers/models.py" in used and "helpers/errors.py" in used
    assert "helpers/settings.py" not in used and "helpers/pipeline.py" not in used
    assert steps_read(path, STEMS) == [FIRST]
    assert steps_read(path, [SECOND, FIRST]) == [FIRST]  # wherever they stand in the book
    before = notebook_hash(path)
    write_notebook(folder, SECOND, "other = 1")
    assert notebook_hash(path) != before


def test_a_changed_local_model_is_another_model(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    before = model_stamp(str(tmp_path))
    assert before == model_stamp(str(tmp_path))
    weights.write_bytes(b"22")
    assert model_stamp(str(tmp_path)) != before
    assert model_stamp("smollm2-135m") and not model_stamp("gpt2")


def make(*arguments: str) -> subprocess.CompletedProcess:
    # Without what a make that runs these tests hands down.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_make_passes_values_on_as_they_were_typed():
    done = make("-n", "book", "SUBJECT=Côte d'Ivoire", "SET=n_shown=3 seed=2", "UPDATE=1")
    line = done.stdout.splitlines()[-1]
    assert """--set subject='Côte d'\\''Ivoire'""" in line
    assert "--set 'n_shown=3' --set 'seed=2'" in line and "--update" in line


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
