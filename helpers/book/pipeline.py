"""The front door of a run: check the command line, then start Snakemake.

    python -m helpers.book.pipeline book --profile smoke --set subject=Japan --set target=Tokyo

`make book` calls this. Mistakes in the input are reported before a kernel starts, and the run
folder is written only after that. A second call continues where the last one stopped, and does
nothing when nothing changed.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from helpers.book.cluster import Cluster, load_cluster
from helpers.book.environment import environment
from helpers.book.progress import (
    echo,
    format_duration,
    open_standard_streams,
    step_durations,
)
from helpers.book.records import BOOK, INDEX
from helpers.book.run_lock import holder, pipeline_lock, wait_for_steps
from helpers.book.run_settings import (
    check_model_apart,
    is_new,
    resolve,
    write_settings,
)
from helpers.book.settings import NOTEBOOKS, ROOT
from helpers.book.sources import DEFAULT_MODEL, NOTEBOOKS_VARIABLE
from helpers.errors import UserError
from helpers.io.files import DISK_FULL
from helpers.io.safe_text import visible

GOALS = {"book": "The book: {}", "notebooks": "The executed notebooks: {}"}
GRACE_SECONDS = 5  # for steps to end before they are killed, which leaves no file half-written
MOST_CORES = 10_000
LEAST_SPACE = 2**20  # bytes: with less on the disk, what failed most likely failed for it
MEMORY_OF_A_STEP = 7 * 2**30  # bytes: a notebook's peak with the default model, and some room
MOST_JOBS = 4  # at a time by default: more seldom have all that they need


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[str]:
    """Yield a folder for the run's `$TMPDIR`, and delete it at the end.

    The link `.tmp` in the run folder names it, so that the next run deletes the folder of a killed
    one. The folder lies outside of the run folder, because sockets need short paths.
    """
    link, prefix = folder / ".tmp", "unlearning-"
    if link.is_symlink():
        stale = Path(os.readlink(link))
        if stale.name.startswith(prefix) and stale.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(stale, ignore_errors=True)
        link.unlink()
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as place:
        with contextlib.suppress(OSError):  # a file system without links
            link.symlink_to(place)
        yield place
    link.unlink(missing_ok=True)


def run(
    folder: Path,
    settings: dict[str, Any],
    goals: list[str],
    *,
    notebooks: Path,
    scheduling: list[str],
    parallel: bool,
    cluster: Cluster | None,
) -> None:
    """Make the goals of a run folder with Snakemake.

    Args:
        folder: The run folder.
        settings: The result of `helpers.book.run_settings.resolve`, which is written to the folder.
        goals: Rules of the Snakefile: one of `GOALS`, or stems of notebooks.
        notebooks: The folder of the notebooks' sources.
        scheduling: Snakemake's options for cores and jobs.
        parallel: Steps may run side by side.
        cluster: The cluster whose jobs the steps are; None for this machine.

    Raises:
        UserError: A step failed; the sentence gives the cause and the log's place.
    """
    steps = [*settings["notebooks"], BOOK]
    log = folder / "logs" / "snakemake.log"
    if cluster:
        cluster.refuse_jobs(folder)
    with pipeline_lock(folder) as lock, temporary_files(folder) as temporary:
        write_settings(folder, settings)
        for name in ("logs", "notebooks", "artifacts"):
            (folder / name).mkdir(exist_ok=True)
        # Each node of a cluster has its own temporary files.
        own = cluster.variables() if cluster else {"TMPDIR": temporary}
        variables = environment() | {NOTEBOOKS_VARIABLE: str(notebooks)} | own
        command = _snakemake(folder, goals, scheduling)
        planned = _planned(command, steps, log, variables)
        todo = [step for step in steps if step in planned]
        if not todo:
            echo(f"Nothing to do in {visible(folder)}: everything is up to date.")
            return
        for step in todo:
            (folder / "logs" / f"{step}.failed").unlink(missing_ok=True)
        expected = step_durations(settings["profile"])
        _announce(folder, todo, {} if parallel else expected)
        plan = json.dumps({"steps": todo, "expected": expected, "parallel": parallel})
        watched = cluster.watched(folder, log, todo) if cluster else contextlib.nullcontext()
        with log.open("w") as file, watched:
            code = _call(command, file, variables | {"UNLEARNING_PLAN": plan}, lock)
        if code < 0:
            wait_for_steps(folder)  # they end with Snakemake, and must end before the lock does
    if code < 0:
        raise UserError(
            f"Snakemake was killed ({signal.Signals(-code).name}), by somebody or because memory "
            "ran out. Finished steps are kept: the same command goes on."
        )
    if code:
        causes = cluster.failures(folder, log) if cluster else {}
        causes |= _written_causes(folder, todo)
        in_order = [causes[step] for step in todo if step in causes]
        raise UserError("\n".join(in_order) or _snakemake_cause(log))


def _announce(folder: Path, todo: list[str], expected: dict[str, float]) -> None:
    """Say how many steps are to be done, and how long all take if that is known of each."""
    estimate = ""
    if all(step in expected for step in todo):
        estimate = f", about {format_duration(sum(expected[s] for s in todo))} in all"
    count = f"{len(todo)} step{'s' if len(todo) > 1 else ''}"
    echo(f"{visible(folder)}: {count} to do{estimate}.")


def _written_causes(folder: Path, steps: list[str]) -> dict[str, str]:
    """Read the sentences of the steps that failed: step → sentence."""
    causes = {}
    for step in steps:
        path = folder / "logs" / f"{step}.failed"
        if path.exists():
            # An empty file was made where there was no room for the sentence.
            causes[step] = path.read_text(encoding="utf-8") or (
                f"{step} found the disk full: free some space, and run again. "
                f"The log is {visible(path.with_suffix('.log'))}."
            )
    return causes


def _on_this_machine(cores: int, jobs: int) -> list[str]:
    """Return Snakemake's options for so many cores, which the notebooks at a time share."""
    return ["--cores", str(cores), "--config", f"threads={max(1, cores // jobs)}"]


def _snakemake(folder: Path, goals: list[str], scheduling: list[str]) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--nolock", "--rerun-incomplete", "--nocolor"]
    command += ["--rerun-triggers", "mtime"]  # of marks; everything else is in the manifests
    return [*command, *scheduling, "--", *goals]


def _planned(
    command: list[str], steps: list[str], log: Path, environment: dict[str, str]
) -> set[str]:
    """Return the names of the rules that Snakemake would run."""
    at = command.index("--directory")
    done = subprocess.run(
        [*command[:at], "--dry-run", "--quiet", "host", *command[at:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )
    if done.returncode:
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        raise UserError(_snakemake_cause(log))
    names = "|".join(map(re.escape, steps))
    return set(re.findall(rf"^\s*(?:local)?rule ({names}):", done.stdout + done.stderr, re.M))


def _snakemake_cause(log: Path) -> str:
    """Find the cause of a failure in Snakemake's log, as a sentence."""
    if shutil.disk_usage(log.parent).free < LEAST_SPACE:
        return f"The disk of {visible(log.parent)} is full: free some space and run again."
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    for line, following in itertools.pairwise(lines):
        if line.startswith("UserError in file"):  # Snakemake's report of one in the Snakefile
            return following
    if killed := re.search(r"died with <Signals\.(\w+)", text):
        step = re.search(r"Error in rule (\w+):", text)
        return (
            f"{step[1] if step else 'A step'} was killed ({killed[1]}), by somebody or because "
            "memory ran out. Finished steps are kept: the same command goes on."
        )
    causes = [line for line in lines if re.search(r"(Error|Exception)\b", line)] or lines[-1:]
    return f"The pipeline stopped: {''.join(causes[:1]).rstrip(':.')}. The log is {log}."


def _call(command: list[str], log: IO[str], environment: dict[str, str], lock: int) -> int:
    """Run Snakemake: its messages go to the log, those of steps to the terminal."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=log, env=environment, pass_fds=[lock]
    )
    try:
        os.write(lock, holder(process.pid).encode())  # Snakemake holds the lock too
        return process.wait()
    except BaseException:
        started = psutil.Process().children(recursive=True)
        process.send_signal(signal.SIGINT)
        for survivor in psutil.wait_procs(started, timeout=GRACE_SECONDS)[1]:  # ignored the signal
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        raise


def checked_count(text: str) -> int:
    """Read a number of cores or jobs from the command line."""
    if not 1 <= int(text) <= MOST_CORES:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MOST_CORES:,}")
    return int(text)


checked_count.__name__ = "int"  # argparse shows this name when the text is no number


def _jobs(cores: int, values: dict) -> int:
    """Choose how many notebooks run at a time, where the user did not say.

    A small model gains little from a second thread: two notebooks with a core each end sooner than
    one after the other with both. Other models, and other devices, get one notebook at a time,
    since each notebook loads the model.
    """
    if values["device"] != "cpu" or values["model"] != DEFAULT_MODEL:
        return 1
    in_memory = psutil.virtual_memory().total // MEMORY_OF_A_STEP
    return int(max(1, min(cores, in_memory, MOST_JOBS)))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}.")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m helpers.book.pipeline", description=__doc__)
    parser.add_argument("goal", choices=GOALS, nargs="?", default="book")
    parser.add_argument("--profile", default="default", help="smoke, default, full, or a file")
    parser.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE")
    parser.add_argument("--name", default="", help="the run folder's name")
    parser.add_argument("--only", nargs="+", default=[], choices=NOTEBOOKS, metavar="NOTEBOOK")
    parser.add_argument(
        "--cores", type=checked_count, help="all together; by default, all there are"
    )
    parser.add_argument("--jobs", type=checked_count, help="notebooks at a time")
    parser.add_argument("--cluster", help="slurm, or a Snakemake profile's folder")
    parser.add_argument("--update", action="store_true", help="take over changed settings")
    parser.add_argument("--no-check", action="store_true", help="do not check the model first")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders lie")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it like Ctrl-C
    open_standard_streams()
    try:
        options = _options(arguments)
        settings = resolve(options)
        folder = Path(os.path.realpath(options.runs)) / settings["name"]
        values = next(iter(settings["notebooks"].values()))
        cluster = load_cluster(options.cluster) if options.cluster is not None else None
        # A machine that submits jobs may lack the cluster's GPUs: there the notebooks check.
        unchecked = options.no_check or (cluster and values["device"] != "cpu")
        if is_new(folder, settings, update=options.update) and not unchecked:
            fact = f"{values['subject']} → {values['target']} ({values['relation']})"
            question = visible(f"Does {values['model']} know {fact}?")
            echo(f"{question} The first time this takes a minute.")
            check_model_apart(settings["notebooks"])
        if cluster:
            scheduling, parallel = cluster.options(cores=options.cores, jobs=options.jobs), True
        else:
            cores = options.cores or _cores()
            jobs = options.jobs or _jobs(cores, values)
            scheduling, parallel = _on_this_machine(cores, jobs), jobs > 1
        run(
            folder,
            settings,
            options.only or [options.goal],
            notebooks=Path(os.path.realpath(options.notebooks)),
            scheduling=scheduling,
            parallel=parallel,
            cluster=cluster,
        )
        goal = "notebooks" if options.only else options.goal
        echo(GOALS[goal].format(visible(folder / (INDEX if goal == "book" else "notebooks"))))
    except UserError as error:
        echo(f"\n{visible(error, allowed=chr(10))}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        echo("\nStopped. Finished steps are kept: the same command goes on.", sys.stderr)
        return 130
    except OSError as error:
        echo(f"\n{_system_error(error)}", sys.stderr)
        return 1
    return 0


def _system_error(error: OSError) -> str:
    """Describe an error of the operating system in one sentence."""
    if error.errno in DISK_FULL:
        return "The disk is full: free some space and run again."
    problem = "The system refused"
    if error.filename:
        problem = f"{visible(error.filename)} cannot be used"
    return f"{problem} ({error.strerror or error}): check what is there, and its permissions."


if __name__ == "__main__":
    sys.exit(main())
