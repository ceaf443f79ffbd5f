"""Execute one step of a run: a notebook through papermill, or the book. Snakemake calls this.

    python -m helpers.steps <run folder> <stem> [--source notebooks/<stem>.ipynb]

Progress goes to the terminal, everything else to `logs/<stem>.log`. The executed notebook takes
its place under `notebooks/` when it is complete; after a failure the half-run one stays in `logs/`
and `logs/<stem>.failed` says why in one sentence, which `helpers.pipeline` shows at the end.
"""

import argparse
import contextlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from helpers.artifacts import atomic_path
from helpers.errors import UserError
from helpers.progress import Progress, remember_duration
from helpers.settings import ROOT

BOOK = "book"
KERNEL = "python3"  # the environment's own
NO_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|can't allocate memory|not enough memory")


def execute(folder: Path, source: Path, parameters: dict) -> None:
    """Run the notebook `source` with `parameters`; its result lands in `folder/notebooks/`.

    Args:
        folder: The run folder.
        source: The notebook, without outputs.
        parameters: Values for its parameters cell.

    Raises:
        UserError: A cell failed or the kernel died; the sentence says where to look.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook
    from papermill.iorw import write_ipynb

    stem = source.stem
    half_run, log = folder / "logs" / f"{stem}.ipynb", folder / "logs" / f"{stem}.log"
    places = f"The log is {log}, the half-run notebook {half_run}."

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
    _log_to(log)
    try:
        notebook = _again_if_no_kernel(
            lambda: execute_notebook(
                source,
                half_run,
                parameters,
                engine_name="progress",
                kernel_name=KERNEL,
                progress_bar=False,
                log_output=True,
                cwd=source.parent,
            )
        )
    except PapermillExecutionError as error:
        told = error.evalue.strip().splitlines()[:1]
        cause = ": ".join([error.ename, *told]).rstrip(".")
        if error.ename == "UserError":
            raise UserError(f"{stem}: {' '.join(told)} {places}") from error
        if NO_MEMORY.search(f"{error.ename} {error.evalue}"):
            raise UserError(f"{stem} ran out of memory ({cause}). {_smaller()} {places}") from error
        raise UserError(f"{stem} failed at In [{error.exec_count}]: {cause}. {places}") from error
    except DeadKernelError as error:
        raise UserError(
            f"{stem}: the kernel died, most likely killed because memory ran out. "
            f"{_smaller()} {places}"
        ) from error
    for key, path in (("input_path", source), ("output_path", folder / "notebooks" / source.name)):
        notebook.metadata.papermill[key] = os.path.relpath(path, ROOT)  # no machine's own paths
    with atomic_path(folder / "notebooks" / source.name) as temporary:
        write_ipynb(notebook, str(temporary))
    half_run.unlink(missing_ok=True)
    if not (folder / "artifacts" / stem / "manifest.json").exists():
        raise UserError(f"{stem} left no manifest.json: its last cell should finish its run.")


def _again_if_no_kernel(run: Callable):
    """Call `run`; once more if the kernel did not start, as kernels can race for a port."""
    try:
        return run()
    except RuntimeError as error:
        if "before replying to kernel_info" not in str(error):
            raise
        logging.getLogger("papermill").warning("The kernel did not start (%s): again.", error)
        return run()


def _smaller() -> str:
    with contextlib.suppress(ValueError, OSError):
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        return f"This machine has {size:.0f} GB: close programs, or try PROFILE=smoke."
    return "Close programs, or try PROFILE=smoke."


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("papermill", "traitlets"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def build_book(folder: Path) -> None:
    """Build the run's book with `helpers.book`.

    Raises:
        UserError: What `helpers.book` said was wrong.
    """
    command = [sys.executable, "-m", "helpers.book", str(folder)]
    with Progress(BOOK):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        sys.stderr.write(done.stderr)
        if done.returncode:
            told = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise UserError(told[-1] if told else f"helpers.book ended with {done.returncode}.")


@contextlib.contextmanager
def _failure_kept(path: Path) -> Iterator[None]:
    path.unlink(missing_ok=True)
    try:
        yield
    except UserError as error:
        path.write_text(str(error))
        sys.exit(1)
    except Exception as error:
        path.write_text(f"{path.stem}: {type(error).__name__}: {error}".split("\n")[0])
        raise  # with its traceback, into logs/snakemake.log


def main(arguments: list[str] | None = None) -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m helpers.steps", description=__doc__)
    parser.add_argument("folder", type=Path, help="the run folder")
    parser.add_argument("step", help="a notebook's stem, or 'book'")
    parser.add_argument("--source", type=Path, help="the notebook")
    options = parser.parse_args(arguments)
    folder, step = options.folder.resolve(), options.step
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    (folder / "logs").mkdir(exist_ok=True)
    started = time.monotonic()
    with _failure_kept(folder / "logs" / f"{step}.failed"):
        if step == BOOK:
            build_book(folder)
        else:
            source = (options.source or ROOT / "notebooks" / f"{step}.ipynb").resolve()
            execute(folder, source, settings["notebooks"][step])
    remember_duration(settings["profile"], step, time.monotonic() - started)


if __name__ == "__main__":
    main()
