"""The front door of a run: check what was asked for, then let Snakemake make it.

    python -m helpers.pipeline book --profile smoke --set subject=Japan --set target=Tokyo

`make book` calls this. Everything that can be wrong with the input is found before a kernel
starts; the run folder is written only after that. A second call goes on where the last one
stopped, and does nothing when nothing changed.
"""

import argparse
import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from helpers.errors import UserError
from helpers.progress import clock, durations, say
from helpers.runs import ask_model, environment, is_new, resolve, write
from helpers.settings import NOTEBOOKS, ROOT
from helpers.steps import BOOK

GOALS = {"book": "The book: {}", "notebooks": "The executed notebooks: {}"}
PATIENCE = 5  # seconds that steps have to end by themselves; what is killed leaves nothing half
INDEX = Path("book/_build/html/index.html")  # in the run folder, by helpers.book


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the run folder; the lock ends with the processes that hold it, however they end.

    Raises:
        UserError: Another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"Another process ({file.read().strip() or 'just starting'}) works in {folder}: "
                "wait until it ends, or stop it."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file.fileno()


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
        settings: From `helpers.runs.resolve`; they become the folder's.
        goals: Rules of the Snakefile: one of `GOALS`, or stems of notebooks.
        notebooks: Where the notebooks' sources lie.
        cores: Processor cores to use.
        jobs: Notebooks at a time; they share the cores.

    Raises:
        UserError: A step failed; the sentence gives the cause and the log's place.
    """
    steps = [*settings["notebooks"], BOOK]
    log = folder / "logs" / "snakemake.log"
    with locked(folder) as lock:
        write(folder, settings)
        log.parent.mkdir(exist_ok=True)
        if not (folder / INDEX).exists():
            (folder / "logs" / "book.done").unlink(missing_ok=True)
        command = _snakemake(folder, goals, notebooks, cores, jobs)
        planned = _planned(command, steps, log, lock)
        todo = [step for step in steps if step in planned]
        if not todo:
            say(f"Nothing to do in {folder}: everything is up to date.")
            return
        expected = durations(settings["profile"])
        for step in todo:
            (folder / "logs" / f"{step}.failed").unlink(missing_ok=True)
        known = all(step in expected for step in todo)
        told = f", about {clock(sum(expected[s] for s in todo))} in all" if known else ""
        say(f"{folder}: {len(todo)} step{'s' if len(todo) > 1 else ''} to do{told}.")
        plan = json.dumps({"steps": todo, "expected": expected, "parallel": jobs > 1})
        with log.open("w") as file:
            code = _call(command, file, environment() | {"UNLEARNING_PLAN": plan}, lock)
    if code:
        failed = [folder / "logs" / f"{step}.failed" for step in todo]
        causes = [path.read_text() for path in failed if path.exists()]
        raise UserError("\n".join(causes) or _snakemake_cause(log))


def _snakemake(folder: Path, goals: list[str], notebooks: Path, cores: int, jobs: int) -> list[str]:
    snakefile = ROOT / "Snakefile"
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", folder]
    command += ["--cores", cores, "--nolock", "--rerun-incomplete", "--nocolor"]
    command += ["--rerun-triggers", "mtime", "params", "input"]
    command += ["--config", f"notebooks={notebooks}", f"jobs={jobs}", "--", *goals]
    return [str(part) for part in command]


def _planned(command: list[str], steps: list[str], log: Path, lock: int) -> set[str]:
    """Names of the rules that Snakemake would run."""
    at = command.index("--config")
    dry = [*command[:at], "--dry-run", "--quiet", "host", *command[at:]]
    done = subprocess.run(dry, capture_output=True, text=True, env=environment(), pass_fds=[lock])
    if done.returncode:
        log.write_text(done.stdout + done.stderr)
        raise UserError(_snakemake_cause(log))
    names = "|".join(map(re.escape, steps))
    return set(re.findall(rf"^\s*(?:local)?rule ({names}):", done.stdout + done.stderr, re.M))


def _snakemake_cause(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    for line, following in itertools.pairwise(lines):
        if line.startswith("UserError in file"):  # how Snakemake reports it from the Snakefile
            return following
    telling = [line for line in lines if re.search(r"(Error|Exception)\b", line)] or lines[-1:]
    return f"The pipeline stopped: {''.join(telling[:1]).rstrip(':.')}. The log is {log}."


def _call(command: list[str], log, environment: dict[str, str], lock: int) -> int:
    """Run Snakemake with its own words in the log and the steps' on the terminal."""
    process = subprocess.Popen(command, stderr=log, env=environment, pass_fds=[lock])
    try:
        return process.wait()
    except BaseException:
        started = psutil.Process().children(recursive=True)
        process.send_signal(signal.SIGINT)
        for left in psutil.wait_procs(started, timeout=PATIENCE)[1]:  # a step that heard nothing
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        raise


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}.")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m helpers.pipeline", description=__doc__)
    parser.add_argument("goal", choices=GOALS, nargs="?", default="book")
    parser.add_argument("--profile", default="default", help="smoke, default, full, or a file")
    parser.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE")
    parser.add_argument("--name", default="", help="the run folder's name")
    parser.add_argument("--only", nargs="+", default=[], choices=NOTEBOOKS, metavar="NOTEBOOK")
    parser.add_argument("--cores", type=int, default=_cores())
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    parser.add_argument("--update", action="store_true", help="take over changed settings")
    parser.add_argument("--no-check", action="store_true", help="do not ask the model first")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders lie")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed is stopped
    try:
        options = _options(arguments)
        settings = resolve(options)
        folder = options.runs.resolve() / settings["name"]
        if is_new(folder, settings, update=options.update) and not options.no_check:
            values = next(iter(settings["notebooks"].values()))
            fact = f"{values['subject']} → {values['target']} ({values['relation']})"
            say(f"Does {values['model']} know {fact}? The first time this takes a minute.")
            ask_model(settings["notebooks"])
        run(
            folder,
            settings,
            options.only or [options.goal],
            notebooks=options.notebooks.resolve(),
            cores=max(1, options.cores),
            jobs=max(1, options.jobs),
        )
        goal = "notebooks" if options.only else options.goal
        say(GOALS[goal].format(folder / (INDEX if goal == "book" else "notebooks")))
    except UserError as error:
        say(f"\n{error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\nStopped. Finished steps are kept: the same command goes on.", sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say("\nThe disk is full: free some space and run again.", sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
