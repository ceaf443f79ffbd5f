"""Execute one step of a run: a notebook through papermill, or the book. Snakemake calls this.

    python -m helpers.book.steps <run folder> <stem>

Progress goes to the terminal, all other output to `logs/<stem>.log`. The executed notebook and the
artifacts replace the last ones when they are complete. After a failure the half-run notebook stays
in `logs/`, and `logs/<stem>.failed` gives the cause in one sentence, which `helpers.book.pipeline`
shows at the end. A step that is up to date does nothing.
"""

import argparse
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.book.cluster import CLUSTER_VARIABLE
from helpers.book.progress import Progress, echo, remember_duration
from helpers.book.records import BOOK, input_hashes, mark_book, record, why_outdated
from helpers.book.run_lock import step_lock
from helpers.book.run_settings import read_settings
from helpers.book.settings import ROOT
from helpers.book.sources import notebook_path
from helpers.errors import UserError
from helpers.io.files import CACHE_VARIABLE, DISK_FULL, atomic_path, cache_dir
from helpers.io.manifest import ARTIFACTS_VARIABLE, step_folder
from helpers.io.safe_text import visible

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNEL = "python3"  # the kernel of this environment
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r" at 0x[0-9a-f]+(?=>)")
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|The disk is full")
NO_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|can't allocate memory|not enough memory")


def execute(folder: Path, stem: str, parameters: dict[str, Any], hashes: dict[str, str]) -> None:
    """Run a notebook, and publish it with its artifacts in the run folder when all is done.

    Args:
        folder: The run folder.
        stem: The notebook.
        parameters: Values for its parameters cell.
        hashes: Its `input_hashes` from before the run: sources that change meanwhile make the step
            outdated.

    Raises:
        UserError: A cell failed or the kernel died; the sentence says where to look. The step's
            last results stay in the run folder.
    """
    # The artifacts are published first. If a kill prevents the notebook's publication, they record
    # the hash of another notebook, and the step is made again.
    with (
        atomic_path(folder / "notebooks" / f"{stem}.ipynb") as notebook,
        atomic_path(step_folder(folder, stem), folder=True, replace=True) as place,
    ):
        os.environ[ARTIFACTS_VARIABLE] = str(place)  # the kernel inherits it
        times = _execute(folder, stem, parameters, notebook)
        record(place, notebook, hashes, times)


def _execute(folder: Path, stem: str, parameters: dict[str, Any], executed: Path) -> dict[str, Any]:
    """Run a notebook through papermill, write it to `executed` and return its times."""
    # jsonschema reads a grammar of the format `iri`, which no notebook has. That takes longer than
    # all else that papermill imports, and jsonschema does without.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    # Imported on use: papermill takes a second, which only a run needs.
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook
    from papermill.iorw import write_ipynb

    source = notebook_path(stem)
    half_run, log = folder / "logs" / f"{stem}.ipynb", folder / "logs" / f"{stem}.log"
    places = f"The log is {visible(log)}, the half-run notebook {visible(half_run)}."

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, manager: NotebookExecutionManager, *args, **kwargs):
            with Progress(stem, len(manager.nb.cells)) as progress:
                completed = manager.cell_complete

                def cell_complete(cell, *a, **k):
                    completed(cell, *a, **k)
                    progress.done += 1
                    progress.failed |= cell.metadata.papermill.status == manager.FAILED

                manager.cell_complete = cell_complete
                return super().execute_managed_notebook(manager, *args, **kwargs)

    papermill_engines.register("progress", Engine)
    try:
        notebook = _again_if_no_kernel(
            lambda: execute_notebook(
                _unfilled(source),
                _unfilled(half_run),
                parameters,
                engine_name="progress",
                kernel_name=KERNEL,
                progress_bar=False,
                log_output=True,
                cwd=str(source.parent),
            )
        )
    except PapermillExecutionError as error:
        first_line = error.evalue.strip().splitlines()[:1]
        cause = ": ".join([error.ename, *first_line]).rstrip(".")
        if error.ename == "UserError":
            raise UserError(f"{stem}: {' '.join(first_line)} {places}") from error
        if NO_SPACE.search(f"{error.ename} {error.evalue}"):
            raise UserError(
                f"{stem} found the disk full ({cause}): free some space. {places}"
            ) from error
        if NO_MEMORY.search(f"{error.ename} {error.evalue}"):
            raise UserError(
                f"{stem} ran out of memory ({cause}). {_memory_advice(stem)} {places}"
            ) from error
        raise UserError(f"{stem} failed at In [{error.exec_count}]: {cause}. {places}") from error
    except DeadKernelError as error:
        raise UserError(
            f"{stem}: the kernel died, most likely killed because memory ran out. "
            f"{_memory_advice(stem)} {places}"
        ) from error
    for key, path in (("input_path", source), ("output_path", folder / "notebooks" / source.name)):
        notebook.metadata.papermill[key] = os.path.relpath(path, ROOT)  # no paths of the machine
    times = _remove_times(notebook)
    write_ipynb(notebook, str(executed))
    half_run.unlink(missing_ok=True)
    return times


def _remove_times(notebook: "NotebookNode") -> dict[str, Any]:
    """Remove times and random identifiers from a notebook, so that equal runs make equal files.

    Returns:
        Start, end and seconds of the notebook, and the seconds of each cell, in papermill's terms.
    """
    names = ("start_time", "end_time", "duration")
    times = {name: notebook.metadata.papermill.pop(name) for name in names}
    cells = [{n: cell.metadata.papermill.pop(n, None) for n in names} for cell in notebook.cells]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"  # papermill draws one
        if "outputs" in cell:  # progress bars, and warnings of a cold cache: the log has them
            cell.outputs = [
                o
                for o in cell.outputs
                if WIDGET not in o.get("data", {}) and o.get("name") != "stderr"
            ]
        for output in cell.get("outputs", []):
            if "text/plain" in output.get("data", {}):  # an object's default repr holds its address
                output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])
    notebook.metadata.pop("widgets", None)
    return times | {"cells": [cell["duration"] for cell in cells]}


def _unfilled(path: Path) -> str:
    """Double the braces of a path: papermill would replace text in braces by parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _again_if_no_kernel(run: Callable):
    """Call `run`, and once more if the kernel did not start: kernels can race for a port."""
    try:
        return run()
    except RuntimeError as error:
        if "before replying to kernel_info" not in str(error):
            raise
        logging.getLogger("papermill").warning("The kernel did not start (%s): again.", error)
        return run()


def _memory_advice(stem: str) -> str:
    if profile := os.environ.get(CLUSTER_VARIABLE):
        return f"Raise mem_mb of {stem} in {profile}, or try PROFILE=smoke."
    with contextlib.suppress(ValueError, OSError):
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        return f"This machine has {size:.0f} GB: close programs, or try PROFILE=smoke."
    return "Close programs, or try PROFILE=smoke."


def _log_to(path: Path) -> None:
    """Send the messages of papermill and the kernel to the step's log."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("papermill", "traitlets"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _check_cache() -> None:
    """Check that this node of a cluster has the cache, which the pipeline made where it started.

    Raises:
        UserError: It has not; the sentence names the node.
    """
    if CLUSTER_VARIABLE in os.environ and not cache_dir().is_dir():
        raise UserError(
            f"Node {socket.gethostname()} has no {visible(cache_dir())}, the folder of the cache: "
            f"give one that all nodes share by {CACHE_VARIABLE}=..., and run again."
        )


def build_book(folder: Path) -> None:
    """Build the run's book with `helpers.book.build`.

    Raises:
        UserError: `helpers.book.build` failed; the sentence is its last line.
    """
    command = [sys.executable, "-m", "helpers.book.build", str(folder)]
    with Progress(BOOK):
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        echo(done.stderr, sys.stderr, end="")
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise UserError(
                lines[-1] if lines else f"helpers.book.build ended with {done.returncode}."
            )


@contextlib.contextmanager
def _write_failure(path: Path) -> Iterator[None]:
    """Write the sentence of an error in the block to `path`, `<step>.failed`."""
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        path.write_text(visible(_told(error, path.stem, path.with_suffix(".log"))), "utf-8")
        if isinstance(error, UserError):
            sys.exit(1)
        raise  # with its traceback, into logs/snakemake.log


def _told(error: Exception, step: str, log: Path) -> str:
    """Describe an error in a step by one sentence that names the step."""
    named = not log.exists() or str(log) in str(error)
    place = "" if named else f" The log is {visible(log)}."
    if isinstance(error, UserError):
        return str(error) if str(error).startswith(step) else f"{step}: {error}{place}"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{step} found the disk full ({error}): free some space, and run again.{place}"
    return f"{step}: {type(error).__name__}: {error}".split("\n")[0]


def _end_with_parent() -> None:
    """Stop this process, as Ctrl-C does, when its parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=watch, daemon=True).start()


def run(folder: Path, step: str) -> None:
    """Make one step of a run, if it is not up to date.

    Raises:
        UserError: A cell failed, the kernel died, or the book could not be built.
    """
    settings = read_settings(folder)
    started = time.monotonic()
    if step == BOOK:
        build_book(folder)
        mark_book(folder, list(settings["notebooks"]))
    else:
        values = settings["notebooks"][step]
        hashes = input_hashes(step, values)
        if not (reason := why_outdated(folder, step, hashes)):
            echo(f"{step} · nothing that it reads has changed")
            return
        _log_to(folder / "logs" / f"{step}.log")
        logging.getLogger("papermill").info("To be made: %s.", reason)
        _check_cache()
        execute(folder, step, values, hashes)
    remember_duration(settings["profile"], step, time.monotonic() - started)


def main(arguments: list[str] | None = None) -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m helpers.book.steps", description=__doc__)
    parser.add_argument("folder", type=Path, help="the run folder")
    parser.add_argument("step", help="a notebook's stem, or 'book'")
    options = parser.parse_args(arguments)
    folder, step = options.folder.resolve(), options.step
    for name in ("logs", "notebooks", "artifacts"):
        (folder / name).mkdir(exist_ok=True)
    _end_with_parent()
    with step_lock(folder), _write_failure(folder / "logs" / f"{step}.failed"):
        run(folder, step)


if __name__ == "__main__":
    main()
