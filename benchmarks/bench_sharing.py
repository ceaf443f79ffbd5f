"""Scoring prompts on a shared machine: threads that soon sleep while they wait, or spin.

Each way has a process of its own, because OpenMP reads its environment when torch is loaded. The
other programs keep one core busy each, and there are as many as cores. Rounds are interleaved, so
that a machine that slows down slows all ways.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from report import report
from workers import model, workers

from helpers.book.environment import SPIN_COUNT
from helpers.facts import ConceptPair, facts
from helpers.forward.scoring import answer_logprobs

ROUNDS, PROMPTS = 5, 60
OURS = "sleep soon"
WAYS = {
    OURS: {"GOMP_SPINCOUNT": SPIN_COUNT},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OpenMP's default": {},
}


def main() -> None:
    cores = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        pools = {way: stack.enter_context(started(WAYS[way])) for way in WAYS}
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(ROUNDS):
            for others in (0, cores):
                with busy(others):
                    for way, pool in pools.items():
                        seconds.setdefault((way, others), []).append(pool.submit(score).result())
    median = {key: statistics.median(times) for key, times in seconds.items()}
    result = {
        "title": "Scoring beside other programs",
        "how": f"log P(answer | prompt) of {PROMPTS} short prompts with a thread a core ({cores}), "
        "and as many other programs as cores, each busy with one thread. An even share makes "
        f"scoring take twice as long as alone. Threads that wait sleep soon (GOMP_SPINCOUNT="
        f"{SPIN_COUNT}, as `make` starts every process), sleep at once (OMP_WAIT_POLICY=PASSIVE), "
        f"or spin for some milliseconds first. Medians of {ROUNDS} interleaved rounds.",
        "rows": [
            {
                "threads that wait": way,
                "other programs": others,
                "seconds": seconds_,
                "times as long as ours": seconds_ / median[OURS, others],
                "times as long as alone": seconds_ / median[way, 0],
            }
            for (way, others), seconds_ in sorted(median.items(), key=lambda item: item[0][1])
        ],
        "seconds": {f"{way}, {others}": times for (way, others), times in seconds.items()},
    }
    report("sharing", result)


@contextlib.contextmanager
def started(variables: dict[str, str]) -> Iterator[ProcessPoolExecutor]:
    """Start a process with the model whose environment has these variables of OpenMP alone."""
    before = dict(os.environ)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    with workers(1, "cpu") as pool:
        pool.submit(score).result()  # starts the process, and takes memory that is new
        os.environ.clear()
        os.environ.update(before)
        yield pool


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    """Keep `n` other programs busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def score() -> float:
    """Score the prompts in a worker and return the seconds."""
    prompts = [
        p
        for fact in facts("capital")
        for p in ConceptPair(fact.subject, fact.target).prompts("train")
        if p.format == "completion"
    ][:PROMPTS]
    start = time.perf_counter()
    answer_logprobs(model(), [str(p) for p in prompts], [p.answers[0] for p in prompts])
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
