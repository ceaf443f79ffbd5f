"""Environment of a run's processes: which code they import, and how their threads wait."""

import os
import re
import sys

from helpers.book.settings import ROOT
from helpers.io.files import CACHE_VARIABLE, cache_dir

# The C library of GNU/Linux returns large freed blocks to the system at once. Getting them back
# takes a sixth of a training step of a small model, so a process keeps up to 1 GiB.
MALLOC = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1073741824"
# Turns of the loop in which a thread of GNU's OpenMP waits for the next operator before it sleeps.
# By default a thread waits for milliseconds. Beside another program it then keeps a core from the
# thread that it waits for. A thousand turns are microseconds and bridge the gaps between operators
# (`benchmarks/bench_sharing.py`). The Makefile gives the same to all that it starts.
SPIN_COUNT = "1000"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def environment() -> dict[str, str]:
    """Return the environment variables of every process of a run.

    Processes import this clone's `helpers`, send no telemetry, write UTF-8, keep freed memory
    for their next step, and hardly spin while they wait. What the user has set stays.
    """
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    if os.environ.get(CACHE_VARIABLE):
        cache_dir()  # makes it absolute
    dropped = {"MPLBACKEND"}  # notebooks draw inline
    terminal = {"PYTHONIOENCODING": getattr(sys.stdout, "encoding", None) or "utf-8"}
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPIN_COUNT}
    return (
        {"GLIBC_TUNABLES": MALLOC}
        | waiting
        | terminal
        | {k: v for k, v in os.environ.items() if k not in dropped}
        | {
            "PYTHONPATH": path,
            "PYTHONHASHSEED": "0",
            "PYTHONUTF8": "1",  # files are UTF-8 in any locale
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "JUPYTER_PREFER_ENV_PATH": "1",
        }
    )


def chosen_threads() -> list[str]:
    """Return the user's own numbers of threads as assignments, `OMP_NUM_THREADS=1`.

    Snakemake sets these variables to a step's share of the cores, so the user's are to be set
    again. torch takes MKL's where there is one; a user who sets OpenMP's means both.
    """
    fallback = os.environ.get("OMP_NUM_THREADS", "")
    chosen = {name: os.environ.get(name, fallback) for name in THREADS}
    return [f"{k}={v}" for k, v in chosen.items() if re.fullmatch(r"\d+(,\d+)*", v)]
