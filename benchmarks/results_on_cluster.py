"""Measure the published results as jobs of a cluster, each a part of them.

    make results CLUSTER=slurm JOBS=16 ARGS="--minutes 100"

What a job's time did not reach is measured by the next call. Memory, time and cores of a job are
those that the cluster's profile gives to steps that it does not name.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from helpers.book.cluster import load_cluster
from helpers.book.environment import environment
from helpers.book.pipeline import checked_count
from helpers.book.settings import ROOT
from helpers.errors import UserError


def command(folder: Path, parts: int, arguments: list[str], scheduling: list[str]) -> list[str]:
    """Return the command line that measures all parts.

    Args:
        folder: Where marks and logs of the jobs lie.
        parts: Number of parts, a job each.
        arguments: Options of `full_results.py`.
        scheduling: Snakemake's options for the executor.
    """
    rules = str(ROOT / "benchmarks" / "Snakefile")
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", rules]
    given = ["--config", f"parts={parts}", f"arguments={json.dumps(arguments)}"]
    # All again: a mark says that a job ended, and not that its part is complete.
    return [*snakemake, "--directory", str(folder), "--forceall", *given, *scheduling]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cluster", required=True, help="slurm, or a Snakemake profile's folder")
    parser.add_argument("--jobs", type=checked_count, default=16, help="parts, a job each")
    args, arguments = parser.parse_known_args()
    cluster = load_cluster(args.cluster)
    folder = ROOT / "runs" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    cluster.refuse_jobs(folder)
    scheduling = cluster.options(cores=None, jobs=args.jobs)
    variables = environment() | cluster.variables()
    try:
        done = subprocess.run(command(folder, args.jobs, arguments, scheduling), env=variables)
    finally:
        cluster.cancel_jobs(folder)
    if done.returncode:
        raise UserError(
            f"Some jobs failed: their logs are in {folder / 'logs'}. What they measured is kept, "
            "and the same command goes on."
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
