"""The accuracy of the verdict on all facts that the model surely knows.

    python benchmarks/known_states.py --workers 8 --device cuda

Chapter 09 does this for a few facts: each as it is, hidden in the last layer, and the same prompts
about a control subject, of which the model knows nothing.
"""

import argparse
import time

import pandas as pd
from report import report
from workers import gather, model, workers

from helpers.evaluation.meta.meta_evaluation import matched_pairs
from helpers.evaluation.meta.verdict_accuracy import MINI_SUITE, accuracies, classify_states
from helpers.facts.known import SURELY_KNOWN_PROB
from helpers.facts.relations import RELATIONS
from helpers.models import load_model
from helpers.stats.intervals import format_interval


def classify(relation, fact, control) -> pd.DataFrame:
    """Classify one fact in the three states, in a worker."""
    table = classify_states(model(), fact, control, attacks=MINI_SUITE)
    return table.assign(relation=relation)


def rows_of(table: pd.DataFrame) -> list[dict]:
    """Report one row a relation and state."""
    rows = []
    for relation, part in table.groupby("relation", sort=False):
        for state, _, n, accuracy, low, high in accuracies(part).itertuples(index=False):
            is_wrong = (part["state"] == state) & ~part["correct"]
            wrong = part.loc[is_wrong, "predicted"].value_counts()
            rows.append(
                {
                    "relation": relation,
                    "wordings": len(RELATIONS[relation].templates["heldout"]),
                    "the truth": state,
                    "facts": n,
                    "right": format_interval(accuracy, low, high),
                    "otherwise": ", ".join(f"{predicted} {k}" for predicted, k in wrong.items())
                    or "–",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=int, default=100, help="of each relation, at most")
    parser.add_argument("--relations", default="capital", help="names by commas")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop and report after so long")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    lm = load_model(device=args.device)
    jobs = [
        (relation, *pair)
        for relation in args.relations.split(",")
        for pair in matched_pairs(lm, relation, n=args.facts, min_prob=SURELY_KNOWN_PROB)
    ]
    with workers(args.workers, args.device) as pool:
        table = gather(pool, classify, jobs, until)
    result = {
        "title": "The verdict where the truth is known",
        "how": "Facts that the model surely knows (mean P(target) at least "
        f"{SURELY_KNOWN_PROB}), seed 0: present in the original, hidden in its last layer, absent "
        "for a subject of which it knows nothing. Battery: "
        f"{', '.join(MINI_SUITE)}. Share of facts whose state it predicts, with the exact 95 % "
        "interval; few prompts show little.",
        "rows": rows_of(table.sort_values(["relation", "fact"])),
    }
    report("known_states", result)


if __name__ == "__main__":
    main()
