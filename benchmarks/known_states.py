"""The accuracy of the verdict on all facts that the model surely knows.

    python benchmarks/known_states.py --workers 8 --device cuda

Chapter 09 does this for a few facts: each as it is, hidden in four ways, and the same prompts about
a control subject, of which the model knows nothing, and about another association of its own.
"""

import argparse
import time

import pandas as pd
from report import report
from workers import gather, model, workers

from helpers.evaluation.meta.meta_evaluation import matched_pairs
from helpers.evaluation.meta.verdict_accuracy import accuracies, classify_states
from helpers.evaluation.tradeoff import MINI_ATTACKS, MINI_OPTIONS
from helpers.facts.known import SURELY_KNOWN_PROB
from helpers.facts.relations import RELATIONS
from helpers.models import load_model
from helpers.stats.intervals import format_interval


def classify(relation, fact, control) -> pd.DataFrame:
    """Classify one fact in every known state, in a worker."""
    table = classify_states(model(), fact, control, attacks=MINI_ATTACKS, options=MINI_OPTIONS)
    return table.assign(relation=relation)


def rows_of(table: pd.DataFrame) -> list[dict]:
    """Report one row a relation, state and kind."""
    rows = []
    for relation, part in table.groupby("relation", sort=False):
        for found in accuracies(part, by=("state", "kind")).itertuples(index=False):
            same = (part["state"] == found.state) & (part["kind"] == found.kind)
            predicted = part.loc[same, "predicted"].value_counts()
            rows.append(
                {
                    "relation": relation,
                    "wordings": len(RELATIONS[relation].templates["heldout"]),
                    "the truth": " ".join(filter(None, (found.state, found.kind))),
                    "facts": found.n,
                    "right": format_interval(found.accuracy, found.low, found.high),
                    "falsely absent": found.falsely_absent,
                    "it says": ", ".join(f"{label} {k}" for label, k in predicted.items()),
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
        f"{SURELY_KNOWN_PROB}), seed 0: present in the original, hidden in four ways, absent for a "
        "subject of which it knows nothing, and absent where the subject is only associated with "
        "the answer. Hidden and suppressed both count as right for what is hidden. Battery: "
        f"{', '.join(MINI_ATTACKS)}. Share of facts whose state it predicts, with the exact 95 % "
        "interval; few prompts show little.",
        "rows": rows_of(table.sort_values(["relation", "fact"])),
    }
    report("known_states", result)


if __name__ == "__main__":
    main()
