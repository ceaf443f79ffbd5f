"""One pipeline at a time in a run folder, and none beside a step that outlived its pipeline."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import psutil

from helpers.errors import UserError
from helpers.io.safe_text import visible

PIPELINE, STEPS = ".lock", ".steps.lock"


@contextlib.contextmanager
def pipeline_lock(folder: Path) -> Iterator[int]:
    """Hold the run folder; the lock ends with the processes that hold it, however they end.

    Yields:
        The lock's file descriptor, for a child to hold it too. What is written there is the
        number of a process that does.

    Raises:
        UserError: Another process works there; the sentence names one that lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PIPELINE).open("a+") as file, (folder / STEPS).open("a+") as steps:
        _take(file, folder)
        _take(steps, folder)  # nobody is at work, and nobody can begin but by us
        fcntl_quietly(steps, fcntl.LOCK_UN)
        file.write(f"{os.getpid()} ")
        file.flush()
        yield file.fileno()


@contextlib.contextmanager
def step_lock(folder: Path) -> Iterator[None]:
    """Let no other pipeline begin in the run folder while this step works there."""
    with (folder / STEPS).open("a+") as file:
        fcntl_quietly(file, fcntl.LOCK_SH)
        file.write(f"{os.getpid()} ")
        file.flush()
        yield


def wait_for_steps(folder: Path) -> None:
    """Return when no step works in the run folder any more."""
    with (folder / STEPS).open("a+") as file:
        fcntl_quietly(file, fcntl.LOCK_EX)


def fcntl_quietly(file: TextIO, operation: int) -> None:
    """`flock` where the file system knows locks; elsewhere everyone goes on."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        raise
    except OSError:
        return


def _take(file: TextIO, folder: Path) -> None:
    try:
        fcntl_quietly(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        numbers = [int(n) for n in file.read().split() if n.isdigit()]
        living = [n for n in numbers if psutil.pid_exists(n)]
        who = f"process {living[-1]}" if living else "just starting"
        raise UserError(
            f"Another process ({who}) works in {visible(folder)}: wait until it ends, or stop it."
        ) from None
    file.truncate(0)
