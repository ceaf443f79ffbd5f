"""Every method on many held-out facts and seeds: what the full profile measures, by many processes.

    python benchmarks/heldout.py --workers 8 --device cuda --saes FOLDER ...

Each method takes the strength that is best on development facts, as in chapter 06. Every (method,
fact, seed) lands in the cache that the notebooks use, so a stopped run goes on where it was. The
rows of the facts and seeds themselves are written as Parquet beside the run folders; with --add
other methods' rows stay in the report as they were measured before.
"""

import argparse
import time

import pandas as pd
from report import report, reported
from workers import gather, model, workers

from helpers.artifacts import write_table
from helpers.evaluation.bootstrap import bootstrap
from helpers.evaluation.tradeoff import (
    FAMILIES,
    Sizes,
    best_shares,
    editing_methods,
    known_pairs,
    tradeoff,
)
from helpers.methods import METHODS
from helpers.models import load_model
from helpers.settings import ROOT

NAME = "heldout"
SHARES = (0.5, 1.0, 2.0)
EVERY = ("surgery", "training", "inference", "control")
COLUMNS = {
    "paraphrases": "paraphrases",
    "worst_paraphrase": "worst wording",
    "greedy": "greedy",
    "neighbours": "neighbours",
    "same_subject": "same subject",
    "same_target": "same target",
    "perplexity_change_factbook": "perplexity, Factbook",
    "perplexity_change_chat": "chat",
}
"""As in a table of `tradeoff` → as here."""
PERCENT = ("perplexity_change_factbook", "perplexity_change_chat")


def measure(pair, name, how, shares, sizes, seed) -> pd.DataFrame:
    """One method on one fact, in a worker."""
    return tradeoff(model(), [pair], {name: how}, shares={name: shares}, sizes=sizes, seeds=[seed])


def rows_of(results: pd.DataFrame) -> list[dict]:
    """One row a method; seeds of one fact are averaged first."""
    rows = []
    for name, part in results.groupby("method", sort=False):
        scored = part.dropna(subset=["paraphrases"])
        row = {
            "method": name,
            "family": METHODS[name].family,
            "strength": part["share"].iloc[0],
            "chosen on": part["chosen_on"].iloc[0],
            "facts": scored["subject"].nunique(),
            "seeds": scored["seed"].nunique(),
            "refused": int((part["refused"] != "").sum()),
        }
        for column, title in COLUMNS.items():
            means = scored.groupby("subject")[column].mean().dropna()
            row[title] = ""
            if column == "worst_paraphrase" and len(means):
                row[title] = f"{scored[column].max():.3g}"
            elif len(means):
                m, times = bootstrap(means.to_numpy()), 100 if column in PERCENT else 1
                mean, low, high = (f"{times * x:.3g}" for x in (m.value, m.low, m.high))
                row[title] = f"{mean} [{low}, {high}]" + " %" * (column in PERCENT)
        rows.append(row)
    return rows


def order(row: dict) -> tuple:
    """The least left first; what could not be scored, then the controls, last."""
    left = row["paraphrases"]
    return row["family"] == "control", left == "", float(left.split()[0]) if left else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=int, default=20, help="held-out facts")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, each with its own draws")
    parser.add_argument("--dev-facts", type=int, default=2, help="development facts, for strengths")
    parser.add_argument("--methods", default="all", help="all, or names by commas")
    parser.add_argument("--saes", nargs="*", default=[], help="folders of SAEs")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop and report after so long")
    parser.add_argument("--add", action="store_true", help="to the rows of other methods")
    parser.add_argument("--rows", default=str(ROOT / "runs" / "heldout.parquet"), help="all rows")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    lm = load_model(device=args.device)
    chosen = editing_methods(args.methods, args.saes, families=EVERY)
    curved = {n: how for n, how in chosen.items() if METHODS[n].family in FAMILIES}
    dev = known_pairs(lm, "capital", "dev", n=args.dev_facts)
    heldout = known_pairs(lm, "capital", "heldout", n=args.facts)
    with workers(args.workers, args.device) as pool:
        jobs = [
            (pair, n, how, list(SHARES), Sizes("dev", 24), 0)
            for n, how in curved.items()
            for pair in dev
        ]
        share = dict.fromkeys(chosen, 1.0) | best_shares(gather(pool, measure, jobs, until))
        jobs = [
            (pair, n, how, [share[n]], Sizes("heldout", 24, 4096), seed)
            for seed in range(args.seeds)
            for group in (curved, {n: how for n, how in chosen.items() if n not in curved})
            for pair in heldout
            for n, how in group.items()
        ]
        results = gather(pool, measure, jobs, until)
    results["chosen_on"] = ", ".join(p.subject for p in dev)
    write_table(args.rows, results)
    rows = rows_of(results)
    if args.add:
        measured = {row["method"] for row in rows}
        rows += [row for row in reported(NAME) if row["method"] not in measured]
    result = {
        "title": "Every method on held-out facts",
        "how": "Held-out capitals that the model knows; strengths chosen on development facts. "
        "P(target) on held-out wordings (mean over facts with its 95 % interval, and the worst "
        "wording of any fact), the share of greedy answers that name it, P(answer) after / before "
        "of what must stay, and the change of perplexity.",
        "rows": sorted(rows, key=order),
    }
    report(NAME, result)


if __name__ == "__main__":
    main()
