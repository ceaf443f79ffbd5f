"""Every method on many held-out facts and seeds, as in the full profile, by many processes.

    python benchmarks/heldout.py --workers 8 --device cuda --saes FOLDER ...

Each method takes the strength that is best on development facts, as in chapter 06; one that has two
forms is measured in both. Every (method, fact, seed) lands in the cache that the notebooks use, so
a stopped run goes on where it was. What SAEs add is a report of its own, fact by fact. The rows of
the facts and seeds themselves are written as Parquet beside the run folders; with --add other
methods' rows stay in the report as they were measured before.
"""

import argparse
import time

import numpy as np
import pandas as pd
from report import report, reported
from workers import gather, model, workers

from helpers.book.settings import ROOT
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.method_choice import FAMILIES, editing_methods
from helpers.evaluation.tradeoff import EvalConfig, tradeoff
from helpers.evaluation.tradeoff_summary import best_scales
from helpers.io.parquet import write_table
from helpers.methods import METHODS
from helpers.methods.fitting.hparams import PARAMETRIZATIONS
from helpers.models import load_model
from helpers.stats.intervals import mean_interval

NAME, PROPOSED = "heldout", "sae_pair"
SCALES = (0.5, 1.0, 2.0)
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
"""Columns of `tradeoff` → columns of the report."""
PERCENT = ("perplexity_change_factbook", "perplexity_change_chat")


def measure(pair, label, hyperparameters, scales, config, seed) -> pd.DataFrame:
    """Measure one method on one fact, in a worker."""
    name = label.partition(", ")[0]
    methods, scales = {name: hyperparameters}, {name: scales}
    rows = tradeoff(model(), [pair], methods, scales=scales, config=config, seeds=[seed])
    return rows.assign(method=label)


def in_each_form(chosen: dict[str, dict], forms: list[str]) -> dict[str, dict]:
    """Label methods; one with parametrizations gets a label and hyperparameters for each form."""
    labelled = {}
    for name, hyperparameters in chosen.items():
        by_form = {}
        if "parametrization" in METHODS[name].hyperparameters():
            by_form = {
                f"{name}, {form}": {**hyperparameters, "parametrization": form} for form in forms
            }
        labelled |= by_form or {name: hyperparameters}
    return labelled


def measured(pool, curved, fixed, dev, heldout, *, seeds: int, until: float) -> pd.DataFrame:
    """Measure every method on held-out facts, at the scale that is best on development facts.

    Args:
        pool: From `workers`.
        curved: Label → hyperparameters of the methods whose edits can be scaled.
        fixed: Label → hyperparameters of the methods whose edits cannot be scaled.
        dev: Development facts.
        heldout: Held-out facts.
        seeds: Number of seeds, each with its own draws.
        until: Time, in seconds since the epoch.
    """
    best = dict.fromkeys(fixed, 1.0)
    config = EvalConfig("dev", 24)
    jobs = [
        (pair, label, hyperparameters, list(SCALES), config, 0)
        for label, hyperparameters in curved.items()
        for pair in dev
    ]
    if jobs:
        best |= best_scales(gather(pool, measure, jobs, until))
    config = EvalConfig("heldout", 24, 4096)
    jobs = [
        (pair, label, hyperparameters, [best[label]], config, seed)
        for seed in range(seeds)
        for group in (curved, fixed)
        for pair in heldout
        for label, hyperparameters in group.items()
    ]
    results = gather(pool, measure, jobs, until)
    return results.assign(chosen_on=", ".join(p.subject for p in dev))


def with_older(rows: list[dict], before: list[dict]) -> list[dict]:
    """Add rows of methods that only an earlier report has, and sort all by `order`."""
    names = {row["method"] for row in rows}
    blank = dict.fromkeys(rows[0], "–")  # a column that older rows have not
    return sorted(rows + [blank | r for r in before if r["method"] not in names], key=order)


def rows_of(results: pd.DataFrame) -> list[dict]:
    """Report one row a method; seeds of one fact are averaged first."""
    rows = []
    for name, part in results.groupby("method", sort=False):
        scored = part.dropna(subset=["paraphrases"])
        row = {
            "method": name,
            "family": part["family"].iloc[0],
            "strength": part["scale"].iloc[0],
            "chosen on": part["chosen_on"].iloc[0],
            "facts": scored["subject"].nunique(),
            "seeds": scored["seed"].nunique(),
            "refused": int((part["refused"] != "").sum()),
        }
        for column, title in COLUMNS.items():
            means = scored.groupby("subject")[column].mean().dropna()
            row[title] = over_facts(means, column)
            if column == "worst_paraphrase" and len(means):
                row["of any fact"] = f"{scored[column].max():.3g}"
        rows.append(row)
    return rows


def over_facts(values: pd.Series, column: str) -> str:
    """Format the mean over facts, with its interval where they are enough; empty without facts."""
    if not len(values):
        return ""
    estimate, factor = mean_interval(values.to_numpy()), 100 if column in PERCENT else 1
    ends = (estimate.value, estimate.low, estimate.high)
    mean, low, high = (f"{factor * x:.3g}" for x in ends)
    interval = "" if np.isnan(estimate.low) else f" [{low}, {high}]"
    return mean + interval + " %" * (column in PERCENT)


def added_by_saes(results: pd.DataFrame) -> list[dict]:
    """Compare `sae_pair` with every other method, fact by fact; empty if it was not run."""
    means = results.groupby(["method", "subject"])[list(COLUMNS)].mean()
    rows = []
    for name in results["method"].unique():
        form = name.partition(", ")[2] or PARAMETRIZATIONS[0]
        proposed = f"{PROPOSED}, {form}"
        if name.startswith(PROPOSED) or proposed not in means.index:
            continue
        gap = means.loc[proposed] - means.loc[name]
        row = {f"{PROPOSED} less": name, "form": form, "facts": len(gap.dropna(how="all"))}
        rows.append(row | {title: over_facts(gap[c].dropna(), c) for c, title in COLUMNS.items()})
    return rows


def order(row: dict) -> tuple:
    """Sort by the remaining P(target); rows without one, and then controls, come last."""
    remaining = row["paraphrases"]
    value = float(remaining.split()[0]) if remaining else 0.0
    return row["family"] == "control", remaining == "", value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=int, default=20, help="held-out facts")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, each with its own draws")
    parser.add_argument("--dev-facts", type=int, default=2, help="development facts, for strengths")
    parser.add_argument("--methods", default="all", help="all, or names by commas")
    parser.add_argument(
        "--forms", default=",".join(PARAMETRIZATIONS), help="of methods that have them"
    )
    parser.add_argument("--saes", nargs="*", default=[], help="folders of SAEs")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=1e4, help="stop and report after so long")
    parser.add_argument("--add", action="store_true", help="to the rows of other methods")
    parser.add_argument("--rows", default=str(ROOT / "runs" / "heldout.parquet"), help="all rows")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    older = reported(NAME) if args.add else []
    lm = load_model(device=args.device)
    chosen = editing_methods(args.methods, args.saes, families=EVERY)
    curved = {n: h for n, h in chosen.items() if METHODS[n].family in FAMILIES}
    curved = in_each_form(curved, args.forms.split(","))
    chosen = {n: h for n, h in chosen.items() if METHODS[n].family not in FAMILIES}
    dev = known_pairs(lm, "capital", "dev", n=args.dev_facts)
    heldout = known_pairs(lm, "capital", "heldout", n=args.facts)
    with workers(args.workers, args.device) as pool:
        results = measured(pool, curved, chosen, dev, heldout, seeds=args.seeds, until=until)
    write_table(args.rows, results)
    result = {
        "title": "Edits on held-out facts",
        "how": "Held-out capitals that the model knows; strengths chosen on the facts named. "
        "P(target) on held-out wordings (mean over facts with its 95 % interval; the same of each "
        "fact's worst wording, and of any fact), the share of greedy answers that name it, "
        "P(answer) after / before of what must stay, and the change of perplexity.",
        "rows": with_older(rows_of(results), older),
    }
    report(NAME, result)
    if added := added_by_saes(results):
        forms = {row["form"] for row in added}
        older = reported(f"{NAME}_saes") if args.add else []
        added += [row for row in older if row["form"] not in forms]
        result = {
            "title": "What SAEs add to an edit",
            "how": f"On the same facts and seeds as above: what {PROPOSED} scores less another "
            "method, mean over facts of the difference with its 95 % interval. Less is better for "
            "the first three and the perplexities, more for what must stay.",
            "rows": added,
        }
        report(f"{NAME}_saes", result)


if __name__ == "__main__":
    main()
