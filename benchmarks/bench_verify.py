"""Time to evaluate an edit and to attack it, on the default model.

A scorecard of a first edit scores the original as well; that of a second one only what it changed.
The battery has all attacks at their own budgets, and its comparisons are not in the cache.
"""

import argparse
import os
import tempfile
import time

import pandas as pd
from report import report

from helpers.evaluation import evaluate
from helpers.evaluation.attacks import ATTACKS
from helpers.evaluation.battery import battery
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.verdict import verdict
from helpers.methods import unlearn
from helpers.models import load_model
from helpers.stats.intervals import format_interval

METHOD = "gated_neuron"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="names by commas")
    args = parser.parse_args()
    model = load_model()
    (pair,) = known_pairs(model, "capital", "dev", n=1)
    edits = [unlearn(model, pair, METHOD, max_fpr=fpr) for fpr in (1e-4, 1e-3)]
    rows = []
    for what, edit in zip(("scorecard", "scorecard of another edit"), edits, strict=True):
        with edit.applied(model):
            start = time.perf_counter()
            card = evaluate(model, pair)
            rows.append({"what": what, "seconds": time.perf_counter() - start})
        print(rows[-1], len(card), flush=True)
    with tempfile.TemporaryDirectory() as cache, edits[0].applied(model):
        os.environ["UNLEARNING_CACHE"] = cache
        evidence = battery(model, pair, attacks=args.attacks.split(","))
    conclusion = verdict(evidence, card)
    found = conclusion.attacks.set_index("attack")
    for name, seconds in evidence.seconds.items():
        row = found.loc[name]
        interval = format_interval(row["recovery"], row["low"], row["high"])
        rows.append(
            {
                "what": f"attack: {name}",
                "seconds": seconds,
                "recovery": interval,
                "finding": row["finding"],
            }
        )
    total = sum(evidence.seconds.values())
    rows.append({"what": "all attacks", "seconds": total, "finding": str(conclusion.label)})
    rows = pd.DataFrame(rows).fillna("–").to_dict("records")  # the same columns in each
    result = {
        "title": "Measuring and attacking an edit",
        "how": f"`{METHOD}` on one development pair. The scorecard has all its parts at their "
        "defaults. Attacks have their own budgets; their seconds include what they are compared "
        "with, the original and control facts, which other runs on the same fact share. One run "
        "each. What each recovers, with its 95 % interval over prompts, and the verdict.",
        "rows": rows,
    }
    report("verify", result)


if __name__ == "__main__":
    main()
