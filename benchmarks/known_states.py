"""The battery's word where the truth is known: on all facts that the model knows well.

    python benchmarks/known_states.py --workers 8 --device cuda

As in chapter 09, which has time for a few facts: each as it is, hidden in the last layer, and the
same question about a subject of which the model knows nothing.
"""

import argparse
import time

import pandas as pd
from report import report
from workers import gather, model, workers

from helpers.evaluation.meta.meta_evaluation import cases
from helpers.evaluation.meta.verdict_accuracy import SHORT, SURE, accuracies, judged
from helpers.facts.relations import RELATIONS
from helpers.models import load_model
from helpers.stats.intervals import quoted


def judge(relation, fact, stranger) -> pd.DataFrame:
    """One fact in the three states, in a worker."""
    return judged(model(), fact, stranger, attacks=SHORT).assign(relation=relation)


def rows_of(table: pd.DataFrame) -> list[dict]:
    """One row a relation and state."""
    rows = []
    for relation, own in table.groupby("relation", sort=False):
        for state, _, n, share, low, high in accuracies(own).itertuples(index=False):
            wrong = own.loc[(own["state"] == state) & ~own["right"], "word"].value_counts()
            rows.append(
                {
                    "relation": relation,
                    "wordings": len(RELATIONS[relation].templates["heldout"]),
                    "the truth": state,
                    "facts": n,
                    "right": quoted(share, low, high),
                    "otherwise": ", ".join(f"{word} {k}" for word, k in wrong.items()) or "–",
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
        (relation, *case)
        for relation in args.relations.split(",")
        for case in cases(lm, relation, n=args.facts, least=SURE)
    ]
    with workers(args.workers, args.device) as pool:
        table = gather(pool, judge, jobs, until)
    result = {
        "title": "The verdict where the truth is known",
        "how": f"Facts that the model knows well (mean P(target) at least {SURE}), seed 0: present "
        "in the original, hidden in its last layer, absent for a subject of which it knows "
        f"nothing. Battery: {', '.join(SHORT)}. Share of facts on which its word is the truth, "
        "with the exact 95 % interval; few wordings show little.",
        "rows": rows_of(table.sort_values(["relation", "fact"])),
    }
    report("known_states", result)


if __name__ == "__main__":
    main()
