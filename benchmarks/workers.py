"""Work for several processes, each with the model loaded once, on CPU or one GPU.

On a GPU start NVIDIA's multi-process service first (`nvidia-cuda-mps-control -d`): without it the
processes take turns.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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


def gather(
    pool: ProcessPoolExecutor,
    work: Callable[..., pd.DataFrame],
    jobs: Sequence[tuple],
    until: float,
) -> pd.DataFrame:
    """Gather the rows of all jobs that end in time; a failed job is printed and left out.

    Args:
        pool: From `workers`.
        work: Makes the rows of one job.
        jobs: Arguments of `work`.
        until: Time, in seconds since the epoch.

    Raises:
        UserError: None ended.
    """
    running = {pool.submit(work, *job): job for job in jobs}
    tables = []
    try:
        for done in as_completed(running, timeout=max(1.0, until - time.time())):
            if error := done.exception():
                print(f"{running[done]}: {error!r}", flush=True)
            else:
                tables.append(done.result())
                if len(tables) % 50 == 0:
                    print(f"{len(tables)} of {len(jobs)}", flush=True)
    except TimeoutError:
        for job in running:
            job.cancel()
        print(f"{len(tables)} of {len(jobs)} in the time given", flush=True)
    if not tables:
        raise UserError("Nothing ended in the time given: raise --minutes.")
    return pd.concat(tables, ignore_index=True)
