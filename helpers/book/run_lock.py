"""Locks of a run folder: one pipeline at a time, and none while a step still runs there."""

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import psutil

from helpers.errors import UserError
from helpers.io.safe_text import visible

PIPELINE, STEPS = ".lock", ".steps.lock"


@contextlib.contextmanager
def pipeline_lock(folder: Path) -> Iterator[int]:
    """Lock a run folder for a pipeline; the lock ends with its processes, even killed ones.

    Yields:
        The lock's file descriptor, so that a child can hold the lock too. Each holder writes the
        `holder` there.

    Raises:
        UserError: Another process works there; the sentence names a living one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PIPELINE).open("a+") as file, (folder / STEPS).open("a+") as steps:
        _acquire(file, folder)
        _acquire(steps, folder)  # no step runs, and only this pipeline can start one
        fcntl_quietly(steps, fcntl.LOCK_UN)
        file.write(holder(os.getpid()))
        file.flush()
        yield file.fileno()


@contextlib.contextmanager
def step_lock(folder: Path) -> Iterator[None]:
    """Keep pipelines from starting in the run folder while this step runs."""
    with (folder / STEPS).open("a+") as file:
        fcntl_quietly(file, fcntl.LOCK_SH)
        file.write(holder(os.getpid()))
        file.flush()
        yield


def holder(number: int) -> str:
    """Return what a process writes into a lock: its number and its machine."""
    return f"{number}@{socket.gethostname()} "


def wait_for_steps(folder: Path) -> None:
    """Wait until no step runs in the run folder."""
    with (folder / STEPS).open("a+") as file:
        fcntl_quietly(file, fcntl.LOCK_EX)


def fcntl_quietly(file: TextIO, operation: int) -> None:
    """Call `flock`; do nothing where the file system has no locks."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        raise
    except OSError:
        return


def _acquire(file: TextIO, folder: Path) -> None:
    """Lock a file at once, or name the process that holds it."""
    try:
        fcntl_quietly(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holders = re.findall(r"(\d+)@(\S+)", file.read())
        here = socket.gethostname()
        # Which processes of another machine have ended cannot be seen from here.
        living = [(n, host) for n, host in holders if host != here or psutil.pid_exists(int(n))]
        who = "just starting"
        if living:
            number, host = living[-1]
            who = f"process {number}" + (f" on {host}" if host != here else "")
        raise UserError(
            f"Another process ({who}) works in {visible(folder)}: wait until it ends, or stop it."
        ) from None
    file.truncate(0)
