"""Work for several processes, each with the model loaded once, on CPU or one GPU.

On a GPU start NVIDIA's multi-process service first (`nvidia-cuda-mps-control -d`): without it the
processes take turns.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context

import pandas as pd
import torch
from nnsight import LanguageModel

from helpers.errors import UserError
from helpers.models import DEFAULT, load_model

_MODEL = {}  # of this process


def workers(n: int, device: str, name: str = DEFAULT) -> ProcessPoolExecutor:
    """Start `n` processes with the model `name`; together they use as many threads as one would."""
    threads = max(1, torch.get_num_threads() // n)
    return ProcessPoolExecutor(
        n, get_context("spawn"), initializer=_load, initargs=(name, device, threads)
    )


def _load(name: str, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    _MODEL["lm"] = load_model(name, device=device)


def model() -> LanguageModel:
    """Return the model of this worker."""
    return _MODEL["lm"]


def finished(
    pool: ProcessPoolExecutor,
    work: Callable[..., pd.DataFrame],
    jobs: Sequence[tuple],
    until: float,
) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Yield each job with its rows as it ends; a failed job is printed and left out.

    After `until` no job is started any more; those that run are waited for.

    Args:
        pool: From `workers`.
        work: Makes the rows of one job.
        jobs: Arguments of `work`, in the order in which they are started.
        until: Time, in seconds since the epoch.
    """
    running = {pool.submit(work, *job): job for job in jobs if time.time() < until}
    waiting, ended = set(running), 0
    while waiting:
        seconds: float | None = until - time.time()
        if seconds <= 0:
            waiting = {job for job in waiting if not job.cancel()}
            seconds = None
        done, waiting = wait(waiting, seconds, FIRST_COMPLETED)
        for job in done:
            if error := job.exception():
                print(f"{running[job]}: {error!r}", flush=True)
                continue
            ended += 1
            yield running[job], job.result()
    print(f"{ended} of {len(jobs)} measured", flush=True)


def gather(
    pool: ProcessPoolExecutor,
    work: Callable[..., pd.DataFrame],
    jobs: Sequence[tuple],
    until: float,
) -> pd.DataFrame:
    """Gather the rows of all jobs that end in time, as `finished` does.

    Raises:
        UserError: None ended.
    """
    tables = [rows for _, rows in finished(pool, work, jobs, until)]
    if not tables:
        raise UserError("Nothing ended in the time given: raise --minutes.")
    return pd.concat(tables, ignore_index=True)
