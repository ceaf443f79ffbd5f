"""The front door of a run: check what was asked for, then let Snakemake make it.

    python -m helpers.book.pipeline book --profile smoke --set subject=Japan --set target=Tokyo

`make book` calls this. Everything that can be wrong with the input is found before a kernel
starts; the run folder is written only after that. A second call goes on where the last one
stopped, and does nothing when nothing changed.
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
from typing import Any, NoReturn

import psutil

from helpers.book.progress import echo, open_standard_streams, step_durations
from helpers.book.records import BOOK, INDEX
from helpers.book.run_lock import pipeline_lock, wait_for_steps
from helpers.book.run_settings import (
    check_model_apart,
    environment,
    is_new,
    resolve,
    write_settings,
)
from helpers.book.settings import NOTEBOOKS, ROOT
from helpers.book.sources import NOTEBOOKS_VARIABLE
from helpers.errors import UserError
from helpers.io.files import DISK_FULL
from helpers.io.safe_text import visible

GOALS = {"book": "The book: {}", "notebooks": "The executed notebooks: {}"}
PATIENCE = 5  # seconds that steps have to end by themselves; what is killed leaves nothing half
MOST_CORES = 10_000


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[str]:
    """A folder for what processes of a run leave in $TMPDIR, deleted at its end.

    The link `.tmp` in the run folder names it, so that what a killed run left goes at the next
    one. It lies elsewhere, as sockets need short names.
    """
    link, prefix = folder / ".tmp", "unlearning-"
    if link.is_symlink():
        left = Path(os.readlink(link))
        if left.name.startswith(prefix) and left.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(left, ignore_errors=True)
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
    cores: int,
    jobs: int,
) -> None:
    """Make the goals of a run folder with Snakemake.

    Args:
        folder: The run folder.
        settings: From `helpers.book.run_settings.resolve`; they become the folder's.
        goals: Rules of the Snakefile: one of `GOALS`, or stems of notebooks.
        notebooks: Where the notebooks' sources lie.
        cores: Processor cores to use.
        jobs: Notebooks at a time; they share the cores.

    Raises:
        UserError: A step failed; the sentence gives the cause and the log's place.
    """
    steps = [*settings["notebooks"], BOOK]
    log = folder / "logs" / "snakemake.log"
    with pipeline_lock(folder) as lock, temporary_files(folder) as temporary:
        write_settings(folder, settings)
        for name in ("logs", "notebooks", "artifacts"):
            (folder / name).mkdir(exist_ok=True)
        own = {NOTEBOOKS_VARIABLE: str(notebooks), "TMPDIR": temporary}
        command = _snakemake(folder, goals, cores, jobs)
        planned = _planned(command, steps, log, environment() | own)
        todo = [step for step in steps if step in planned]
        if not todo:
            echo(f"Nothing to do in {visible(folder)}: everything is up to date.")
            return
        expected = step_durations(settings["profile"])
        for step in todo:
            (folder / "logs" / f"{step}.failed").unlink(missing_ok=True)
        known = all(step in expected for step in todo)
        told = f", about {format_duration(sum(expected[s] for s in todo))} in all" if known else ""
        count = f"{len(todo)} step{'s' if len(todo) > 1 else ''}"
        echo(f"{visible(folder)}: {count} to do{told}.")
        plan = json.dumps({"steps": todo, "expected": expected, "parallel": jobs > 1})
        with log.open("w") as file:
            code = _call(command, file, environment() | own | {"UNLEARNING_PLAN": plan}, lock)
        if code < 0:
            wait_for_steps(folder)  # they end with it, and should have ended before the lock does
    if code < 0:
        raise UserError(
            f"Snakemake was killed ({signal.Signals(-code).name}), by somebody or because memory "
            "ran out. Finished steps are kept: the same command goes on."
        )
    if code:
        failed = [folder / "logs" / f"{step}.failed" for step in todo]
        causes = [path.read_text(encoding="utf-8") for path in failed if path.exists()]
        raise UserError("\n".join(causes) or _snakemake_cause(log))


def _snakemake(folder: Path, goals: list[str], cores: int, jobs: int) -> list[str]:
    snakefile = ROOT / "Snakefile"
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", folder]
    command += ["--cores", cores, "--nolock", "--rerun-incomplete", "--nocolor"]
    command += ["--rerun-triggers", "mtime"]  # of marks: what else there is is in the manifests
    command += ["--config", f"jobs={jobs}", "--", *goals]
    return [str(part) for part in command]


def _planned(
    command: list[str], steps: list[str], log: Path, environment: dict[str, str]
) -> set[str]:
    """Names of the rules that Snakemake would run."""
    at = command.index("--config")
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
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    for line, following in itertools.pairwise(lines):
        if line.startswith("UserError in file"):  # how Snakemake reports it from the Snakefile
            return following
    if killed := re.search(r"died with <Signals\.(\w+)", text):
        step = re.search(r"Error in rule (\w+):", text)
        return (
            f"{step[1] if step else 'A step'} was killed ({killed[1]}), by somebody or because "
            "memory ran out. Finished steps are kept: the same command goes on."
        )
    telling = [line for line in lines if re.search(r"(Error|Exception)\b", line)] or lines[-1:]
    return f"The pipeline stopped: {''.join(telling[:1]).rstrip(':.')}. The log is {log}."


def _call(command: list[str], log, environment: dict[str, str], lock: int) -> int:
    """Run Snakemake with its own words in the log and the steps' on the terminal."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=log, env=environment, pass_fds=[lock]
    )
    try:
        os.write(lock, f"{process.pid} ".encode())  # another one that holds it
        return process.wait()
    except BaseException:
        started = psutil.Process().children(recursive=True)
        process.send_signal(signal.SIGINT)
        for left in psutil.wait_procs(started, timeout=PATIENCE)[1]:  # a step that heard nothing
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        raise


def _count(text: str) -> int:
    if not 1 <= int(text) <= MOST_CORES:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MOST_CORES:,}")
    return int(text)


_count.__name__ = "int"  # argparse names it when the text is no number


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
    parser.add_argument("--cores", type=_count, default=_cores())
    parser.add_argument("--jobs", type=_count, default=1, help="notebooks at a time")
    parser.add_argument("--update", action="store_true", help="take over changed settings")
    parser.add_argument("--no-check", action="store_true", help="do not ask the model first")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders lie")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed is stopped
    open_standard_streams()
    try:
        options = _options(arguments)
        settings = resolve(options)
        folder = Path(os.path.realpath(options.runs)) / settings["name"]
        if is_new(folder, settings, update=options.update) and not options.no_check:
            values = next(iter(settings["notebooks"].values()))
            fact = f"{values['subject']} → {values['target']} ({values['relation']})"
            asked = visible(f"Does {values['model']} know {fact}?")
            echo(f"{asked} The first time this takes a minute.")
            check_model_apart(settings["notebooks"])
        run(
            folder,
            settings,
            options.only or [options.goal],
            notebooks=Path(os.path.realpath(options.notebooks)),
            cores=options.cores,
            jobs=options.jobs,
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
        echo(f"\n{_told(error)}", sys.stderr)
        return 1
    return 0


def _told(error: OSError) -> str:
    """An error of the system as a sentence."""
    if error.errno in DISK_FULL:
        return "The disk is full: free some space and run again."
    where = f"{visible(error.filename)} cannot be used" if error.filename else "The system refused"
    return f"{where} ({error.strerror or error}): check what is there, and its permissions."


if __name__ == "__main__":
    sys.exit(main())
