"""The published results on many nodes: how long, from the measured time of each measurement.

Each node takes one part (`full_results.py --part 3/16`) with one process. Parts are drawn by a
hash, so that nodes need not speak to each other. They differ in length, and the longest decides.
"""

import subprocess
import sys
import time

from full_results import FACTS, SEED_FACTS, SEEDS
from report import report

from helpers.errors import UserError
from helpers.evaluation.published import DURATION, part_of, published

NODES = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    table = published(split="heldout")
    table = table[table["metric"] == DURATION]
    if table.empty:
        raise UserError("No measurement has its time yet: 'make results' first.")
    seconds = table.groupby("method", observed=True)["value"].mean()
    plan = [(f, 0) for f in range(FACTS)]
    plan += [(f, seed) for seed in range(1, SEEDS) for f in range(SEED_FACTS)]
    start = start_seconds()
    hours = {}
    for n in NODES:
        parts = dict.fromkeys(range(1, n + 1), start)
        for label, took in seconds.items():
            for fact, seed in plan:
                parts[part_of(str(label), str(fact), seed, n)] += took
        hours[n] = max(parts.values()) / 3600
    result = {
        "title": "The published results on many nodes",
        "how": f"A simulation: {FACTS} held-out facts with one seed and {SEED_FACTS} with {SEEDS}, "
        f"for the {len(seconds)} methods and forms whose measurements have their time (mean over "
        f"{len(table)} measurements of edit, scores and short attacks, each by a process with one "
        f"thread, a process a core). A node has one process, which takes {start:.0f} s until its "
        "model is loaded (measured). Measurements are drawn into parts by a hash.",
        "rows": [
            {
                "nodes": n,
                "hours": value,
                "times as fast as one": hours[1] / value,
                "share of the ideal": hours[1] / value / n,
            }
            for n, value in hours.items()
        ],
    }
    report("nodes", result)


def start_seconds() -> float:
    """Measure how long a process takes until it has the model."""
    started = time.perf_counter()
    code = "from helpers.models import load_model; load_model()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
