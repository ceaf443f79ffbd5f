"""Clusters: each step is a job of a scheduler, submitted by an executor of Snakemake's.

A cluster is a folder with a Snakemake profile, `config.yaml`: the executor's name, its options and
the resources of each step's job. `profiles/clusters` has one for Slurm.
"""

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.book.progress import echo
from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.io.choices import MAX_SHOWN
from helpers.io.files import CACHE_VARIABLE, cache_dir
from helpers.io.safe_text import visible
from helpers.io.yaml_files import read_yaml

CLUSTERS = ROOT / "profiles" / "clusters"
CLUSTER_VARIABLE = "UNLEARNING_CLUSTER"  # for the steps of a run: the file of the cluster's profile
# Snakemake's messages about a job → what the terminal shows. Each names the step.
EVENTS = (
    (re.compile(r"has been submitted with SLURM jobid (?P<job>\d+) .*/rule_(?P<step>\w+)/"), "job"),
    (re.compile(r"^Finished jobid: \d+ \(Rule: (?P<step>\w+)\)"), "done"),
    (re.compile(r"^Error in rule (?P<step>\w+):"), "failed"),
)
# Words of a scheduler about a job that it ended → the cause and the advice. The words stand in the
# job's state, and in its log where the state says only that it failed.
ENDS = (
    (
        re.compile(r"OUT_OF_MEMORY|oom.kill|exceeded (job )?memory limit", re.I),
        "used more memory than it was given: raise mem_mb of {step} in {config}, and run again",
    ),
    (
        re.compile(r"TIMEOUT|DUE TO TIME LIMIT"),
        "took longer than it was given: raise runtime of {step} in {config}, and run again, which "
        "goes on from what it had kept",
    ),
    (
        re.compile(r"No space left on device|Disk quota exceeded"),
        "found the disk full: free some space, and run again",
    ),
    (re.compile(r"NODE_FAIL|DUE TO NODE FAILURE"), "lost its node: run again"),
    (re.compile(r"CANCELLED"), "was cancelled, by somebody or by the cluster: run again"),
    (
        re.compile(r"sbatch failed"),
        "was refused ({refusal}): change resources of {step} in {config}, and run again",
    ),
)
OTHERWISE = (
    "failed before it could say why: see whether its node has {folder}, {root} and the "
    "environment under the same names, and run again"
)


@dataclass(frozen=True)
class Cluster:
    """A cluster whose jobs can be submitted from here.

    Attributes:
        config: The file of its Snakemake profile.
        executor: Name of Snakemake's executor.
    """

    config: Path
    executor: str

    def options(self, *, cores: int | None, jobs: int | None) -> list[str]:
        """Return Snakemake's options.

        Args:
            cores: Processor cores that all jobs together may have; None for no limit.
            jobs: Jobs at a time; None for the profile's number.
        """
        given = {"--cores": cores, "--jobs": jobs}
        numbers = [str(part) for pair in given.items() if pair[1] for part in pair]
        return ["--profile", str(self.config.parent), *numbers]

    def variables(self) -> dict[str, str]:
        """Make the cache's folder, and return the environment variables of the jobs.

        A job gets the cache's place as it is here, and can tell that its node lacks it.
        """
        cache_dir().mkdir(parents=True, exist_ok=True)
        return {CACHE_VARIABLE: str(cache_dir()), CLUSTER_VARIABLE: str(self.config)}

    @contextlib.contextmanager
    def watched(self, folder: Path, log: Path, steps: list[str]) -> Iterator[None]:
        """Show what becomes of the jobs while Snakemake runs in the block, and leave none behind.

        Args:
            folder: The run folder.
            log: Snakemake's log, which exists.
            steps: The steps to be done, in order.
        """
        ended = threading.Event()
        thread = threading.Thread(target=_follow, args=(log, steps, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.cancel_jobs(folder)  # that Snakemake had no time to cancel
            ended.set()
            thread.join()

    def job_numbers(self, folder: Path) -> list[str]:
        """List the numbers of this user's jobs that wait or run in a run folder.

        Raises:
            UserError: Slurm does not answer.
        """
        if self.executor != "slurm":
            return []
        command = ["squeue", "--me", "--noheader", "--format=%i %Z"]  # number, working directory
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            cause = " ".join(done.stderr.split()).rstrip(".")
            raise UserError(
                f"Slurm does not answer (squeue: {cause}): try later, or leave CLUSTER away."
            )
        jobs = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
        return [number for number, place in jobs if place == str(folder)]

    def refuse_jobs(self, folder: Path) -> None:
        """Check that no job of an earlier run waits or runs in a run folder.

        Locks do not tell: a job that waits holds none, and some file systems have none.

        Raises:
            UserError: There are jobs; the sentence gives their numbers.
        """
        if numbers := self.job_numbers(folder):
            raise UserError(
                f"Jobs of an earlier run still work in {visible(folder)}: wait until they end, or "
                f"cancel them by 'scancel {' '.join(numbers)}'."
            )

    def cancel_jobs(self, folder: Path) -> None:
        """Cancel the jobs in a run folder, if Snakemake left any."""
        with contextlib.suppress(UserError):  # another error is being told
            if numbers := self.job_numbers(folder):
                subprocess.run(["scancel", *numbers], capture_output=True)

    def failures(self, folder: Path, log: Path) -> dict[str, str]:
        """Find the steps whose jobs failed.

        Args:
            folder: The run folder.
            log: Snakemake's log.

        Returns:
            Step → a sentence with the cause, its job's number, the log's place, and what to do.
        """
        sentences = {}
        text = log.read_text(encoding="utf-8", errors="replace")
        for step, report in re.findall(r"^Error in rule (\w+):\n((?: {4}.*\n?)+)", text, re.M):
            written = re.search(r"^    log: (.+?)(?: \(check log file.*)?$", report, re.M)
            number = re.search(r"external_jobid: (\S+)", report)
            refusal = re.search(r"error message was '(?:sbatch: error: )?([^'\n]*)", report)
            job_log = Path(written[1]) if written else log
            words = report.partition("    shell:")[0] + _last_words(job_log, than=log)
            ending = next((end for pattern, end in ENDS if pattern.search(words)), OTHERWISE)
            said = ending.format(
                step=step,
                config=visible(self.config),
                folder=visible(folder),
                root=visible(ROOT),
                refusal=visible(refusal[1]).rstrip(".") if refusal else "no reason given",
            )
            job = f"{step} (job {number[1]})" if number else step
            sentences[step] = f"{job} {said}. The log is {visible(job_log)}."
        return sentences


def load_cluster(name: str) -> Cluster:
    """Load a cluster, and check that jobs can be submitted.

    Args:
        name: The name of a folder in `profiles/clusters`, or the path of another one.

    Raises:
        UserError: There is no such cluster, its profile names no executor, the executor's plugin or
            its commands are not installed here, or its jobs share no files.
    """
    known = sorted(path.parent.name for path in CLUSTERS.glob("*/config.yaml"))
    config = (CLUSTERS / name if name in known else Path(name).absolute()) / "config.yaml"
    if not os.path.isfile(config):
        raise UserError(
            f"There is no cluster '{visible(name)[:MAX_SHOWN]}': CLUSTER is {', '.join(known)}, or "
            "a folder with a Snakemake profile, config.yaml."
        )
    options = read_yaml(config)
    executor = options.get("executor") if isinstance(options, dict) else None
    if not isinstance(executor, str) or not re.fullmatch(r"[\w-]+", executor):
        raise UserError(
            f"{visible(config)} names no executor: give a line such as executor: slurm."
        )
    if executor == "slurm" and not (shutil.which("sbatch") and shutil.which("squeue")):
        raise UserError(
            f"CLUSTER={visible(name)} submits jobs by sbatch, which is not installed here: run on "
            "a machine that submits to the cluster (its login node), or leave CLUSTER away."
        )
    try:
        plugin = importlib.import_module(f"snakemake_executor_plugin_{executor.replace('-', '_')}")
    except ModuleNotFoundError:
        requirement = f"snakemake-executor-plugin-{executor}"
        if executor == "slurm":
            requirement = f"-r {visible(ROOT / 'requirements-cluster.txt')}"
        raise UserError(
            f"CLUSTER={visible(name)} needs a plugin of Snakemake: install it by "
            f"'{sys.executable} -m pip install {requirement}'."
        ) from None
    if plugin.common_settings.implies_no_shared_fs:
        raise UserError(
            f"Jobs of the executor {executor} share no files, and steps find there what others "
            "made: run the whole book in one job (book/how_to_rerun.md, 'On a cluster')."
        )
    return Cluster(config, executor)


def _follow(log: Path, steps: list[str], ended: threading.Event) -> None:
    """Show the events in Snakemake's log as it grows, until it ends."""
    with log.open(encoding="utf-8", errors="replace") as file:
        last = False
        while not last:
            last = ended.wait(1.0)  # seconds; the rest is read once more after the end
            for line in file:
                _show(line, steps)


def _show(line: str, steps: list[str]) -> None:
    for pattern, event in EVENTS:
        if (match := pattern.search(line)) and match["step"] in steps:
            number = f" {match['job']}" if event == "job" else ""
            position = f"[{steps.index(match['step']) + 1}/{len(steps)}]"
            echo(f"{position} {match['step']} · {event}{number}")


def _last_words(job_log: Path, *, than: Path) -> str:
    """Return the end of a job's log, where there is one; Snakemake's is that of no job."""
    with contextlib.suppress(OSError):
        if job_log != than:
            return job_log.read_text(encoding="utf-8", errors="replace")[-5000:]
    return ""
