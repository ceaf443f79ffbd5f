"""Measure the published results: every method on many facts, in pieces, by several processes.

    make results                               # goes on where it stopped
    make results ARGS="--minutes 55"           # a piece
    make results ARGS="--part 3/16"            # on one of 16 machines
    make results CLUSTER=slurm JOBS=16         # as 16 jobs of a cluster
    make results                               # takes in the parts, and goes on

First each edit's strength is chosen on development facts. Then come held-out facts, one after
another with every method, and then further seeds of the first few. What is missing comes first,
then rows of methods whose code has changed, then rows that another version of the scores measured.
Each measurement is written as it ends. SAEs are those of a finished run of the book.

A part takes every sixteenth measurement, and writes a file of its own beside the table. Strengths
are those of the table, so measure development facts first: `--facts 0`.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
from nnsight import LanguageModel
from workers import finished, model, workers

from helpers.book.settings import ROOT, Common
from helpers.errors import UserError
from helpers.evaluation.evaluation_pairs import known_pairs
from helpers.evaluation.method_choice import FAMILIES, editing_methods
from helpers.evaluation.published import (
    COLUMNS,
    DURATION,
    PARTS,
    PUBLISHED,
    State,
    as_published,
    chosen_strengths,
    method_of,
    part_of,
    publish,
    published,
    state_of,
    take_in_parts,
    with_rows,
)
from helpers.evaluation.tradeoff import EvalConfig, tradeoff
from helpers.facts import ConceptPair
from helpers.io.manifest import git_commit
from helpers.io.run import Run
from helpers.methods import METHODS
from helpers.methods.fitting.hparams import PARAMETRIZATIONS
from helpers.models import load_model, model_hash
from helpers.sae.store import sae_folders

RELATION = "capital"
FACTS, SEEDS, SEED_FACTS = 20, 3, 5  # held-out facts; seeds, of the first few of them
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
EVERY = (*FAMILIES, "training", "inference")
CONFIGS = {"dev": EvalConfig("dev", 12), "heldout": EvalConfig("heldout", 12, 1024)}


class Job(NamedTuple):
    """One measurement: a method on a fact at some scales."""

    split: str
    label: str
    pair: ConceptPair
    seed: int
    scales: tuple[float, ...]
    hyperparameters: dict
    commit: str


def measure(*values) -> pd.DataFrame:
    """Make an edit and score it, in a worker."""
    job, lm, started = Job(*values), model(), time.perf_counter()
    name, config = method_of(job.label), CONFIGS[job.split]
    rows = tradeoff(
        lm,
        [job.pair],
        {name: job.hyperparameters},
        scales={name: job.scales},
        config=config,
        seeds=[job.seed],
    )
    about = {"split": job.split, "model_hash": model_hash(lm), "commit": job.commit}
    settings = f"{config.n_neighbours} neighbours, {config.n_tokens} tokens"
    made = as_published(rows, job.label, settings=settings, **about)
    took = made.head(1).assign(metric=DURATION, value=time.perf_counter() - started)
    return pd.concat([made, took], ignore_index=True)


def labelled(saes: list[str], names: str) -> dict[str, dict]:
    """Label the methods; one with parametrizations has a further label for each but its default."""
    chosen = editing_methods(names, saes, families=EVERY)
    for name, given in list(chosen.items()):
        default = METHODS[name].hyperparameters().get("parametrization")
        for form in PARAMETRIZATIONS if default else ():
            if form != default:
                chosen[f"{name}, {form}"] = {**given, "parametrization": form}
    return chosen


def planned(
    lm: LanguageModel,
    table: pd.DataFrame,
    args: argparse.Namespace,
    chosen: dict[str, dict],
    split: str,
) -> list[Job]:
    """Plan the measurements of a split that are not there, or not by today's code, in order."""
    table = table[table["model_hash"] == model_hash(lm)]
    jobs = list(_jobs(lm, args, chosen, chosen_strengths(table), split))
    rows = table[table["split"] == split]
    by_job = dict(list(rows.groupby(["method", "subject", "seed"])))
    states = [
        state_of(by_job.get((job.label, job.pair.subject, job.seed)), job.label, job.scales)
        for job in jobs
    ]
    order = sorted(range(len(jobs)), key=states.__getitem__)  # stable: facts in their order
    return [jobs[i] for i in order if states[i] < State.CURRENT]


def _jobs(lm, args, chosen, strengths, split) -> Iterator[Job]:
    pairs = known_pairs(lm, RELATION, split, n=args.dev_facts if split == "dev" else args.facts)
    commit = git_commit()
    for seed in range(args.seeds if split == "heldout" else 1):
        for pair in pairs[: args.seed_facts if seed else None]:
            for label, given in chosen.items():
                if split == "heldout":
                    scales = (strengths.get(label, 1.0),)
                    yield Job(split, label, pair, seed, scales, given, commit)
                elif METHODS[method_of(label)].family == "surgery":
                    yield Job(split, label, pair, seed, SCALES, given, commit)


def part(text: str) -> tuple[int, int]:
    """Read `3/16`: the third of sixteen parts."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is no part: give 3/16 for the third of sixteen")
    return int(match[1]), int(match[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=int, default=FACTS, help="held-out facts")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds, each with its own draws")
    parser.add_argument("--seed-facts", type=int, default=SEED_FACTS, help="facts with all seeds")
    parser.add_argument("--dev-facts", type=int, default=6, help="development facts, for strengths")
    parser.add_argument("--methods", default="all", help="all, or names by commas")
    parser.add_argument("--run", default="runs/default", help="the run whose SAEs are taken")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--part", type=part, help="such as 3/16: the third of sixteen parts")
    parser.add_argument("--minutes", type=float, default=1e4, help="start nothing after so long")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    saes = sae_folders(Run(ROOT / args.run, "results", Common()), "", step="04_sparse_autoencoders")
    if not saes:
        raise UserError(f"{args.run} has no SAEs: 'make run ONLY=04_sparse_autoencoders' first.")
    chosen = labelled(saes, args.methods)
    lm, path = load_model(device=args.device), PUBLISHED
    if args.part:
        path, others = PUBLISHED.with_name(PARTS.format(*args.part)), published()
        table = published(path)
    else:
        table = take_in_parts(PUBLISHED)
        others = table.iloc[:0]
    with workers(args.workers, args.device) as pool:
        for split in CONFIGS:
            known = with_rows(others, table[COLUMNS])
            jobs = planned(lm, known, args, chosen, split)
            if args.part:
                number, n = args.part
                jobs = [j for j in jobs if part_of(j.label, str(j.pair), j.seed, n) == number]
            print(f"{split}: {len(jobs)} measurements to make", flush=True)
            for job, rows in finished(pool, measure, jobs, until):
                table = with_rows(table, rows)
                publish(path, table)
                seconds = rows.loc[rows["metric"] == "seconds", "value"]
                took = "refused" if seconds.empty else f"edit in {seconds.iloc[0]:.1f} s"
                print(f"{job[1]} on {job[2].subject}, seed {job[3]}: {took}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
