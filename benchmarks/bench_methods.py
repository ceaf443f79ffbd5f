"""Cost of a method: seconds and memory of one edit of one pair, each in a process of its own.

A process of its own is what keeps the peaks apart. What methods share (statistics of text and of
other subjects) is in the cache, as it is after the first pair.
"""

import argparse
import resource
from collections.abc import Callable

from report import report
from workers import model, workers

from helpers.errors import UserError
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.method_choice import editing_methods
from helpers.methods import METHODS, unlearn

FAMILIES = ("surgery", "training", "inference", "control")


def cost(name: str, hyperparameters: dict) -> dict:
    """Measure one method, in a process of its own."""
    first, second = known_pairs(model(), "capital", "dev", n=2)
    row = {"method": name, "family": METHODS[name].family}
    try:
        unlearn(model(), first, name, **hyperparameters)  # fills the cache
        made = unlearn(model(), second, name, **hyperparameters)
    except UserError as error:
        return row | {"seconds": "–", "peak MB": "–", "edit kB": str(error)}
    return row | {
        "seconds": made.seconds,
        "peak MB": _peak(),
        "edit kB": made.delta.size() / 1024,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default="all", help="all, or names by commas")
    parser.add_argument("--saes", nargs="*", default=[], help="folders of SAEs, for who needs them")
    args = parser.parse_args()
    rows = [{"method": "(the model alone)", "family": "", **apart(nothing)}]
    for name, how in editing_methods(args.methods, args.saes, families=FAMILIES).items():
        rows.append(apart(cost, name, how))
        print(rows[-1], flush=True)
    result = {
        "title": "What a method costs",
        "how": "One development pair with each method's defaults, the model loaded and what pairs "
        "share in the cache: wall-clock seconds, peak resident memory of the process (the model's "
        "weights and the libraries included), size of the edit as it is kept. One run each.",
        "rows": rows,
    }
    report("methods", result)


def nothing() -> dict:
    """Measure the model alone."""
    known_pairs(model(), "capital", "dev", n=1)
    return {"seconds": 0.0, "peak MB": _peak(), "edit kB": 0.0}


def apart(work: Callable[..., dict], *arguments) -> dict:
    """Run `work` in a process of its own."""
    with workers(1, "cpu") as pool:
        return pool.submit(work, *arguments).result()


if __name__ == "__main__":
    main()
