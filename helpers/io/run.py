"""A step of a run: its artifacts, and the manifest that records what they were made from."""

import contextlib
import os
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from helpers.errors import UserError
from helpers.io.files import atomic_path, read_json, write_json
from helpers.io.hashing import content_hash, file_hashes
from helpers.io.manifest import (
    ARTIFACTS_VARIABLE,
    MANIFEST,
    git_commit,
    manifest_hash,
    read_manifest,
    step_folder,
    versions,
    why_changed,
)
from helpers.io.parquet import read_table, write_table


class Run:
    """One step (a notebook) of a run folder: its artifacts and the manifest that records them.

    Artifacts are written beside those of the step's last run and replace them all at once, when the
    step finishes. A step that fails leaves the last artifacts as they were.

    Attributes:
        folder: The run folder, `runs/<name>`.
        step: The notebook's stem; artifacts lie in `artifacts/<step>/`.
    """

    def __init__(self, folder: str | Path, step: str, settings: BaseModel):
        """Start the clock of a step.

        Args:
            folder: The run folder.
            step: The notebook's stem.
            settings: The step's checked parameters, for the manifest.
        """
        self.folder, self.step, self.settings = Path(folder), step, settings
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        self._inputs: dict[str, str] = {}
        self._place: Path | None = None
        self._published = contextlib.ExitStack()

    def path(self, name: str, *, step: str | None = None) -> Path:
        """Return the path of the artifact `name` of this step, or of another one."""
        if step in (None, self.step):
            return self._own_place() / name
        return step_folder(self.folder, step) / name

    def _own_place(self) -> Path:
        """Return the folder to write: the one that helpers.book.steps made, or a temporary one."""
        if self._place is None:
            prepared = Path(os.environ.get(ARTIFACTS_VARIABLE, ""))
            if prepared.name == self.step:
                self._place = prepared
            else:
                final = step_folder(self.folder, self.step)
                writing = atomic_path(final, folder=True, replace=True)
                self._place = self._published.enter_context(writing)
        return self._place

    def save(self, name: str, value: pd.DataFrame | dict | list) -> Path:
        """Write a table (`.parquet`) or plain data (`.json`) for other steps and for the page.

        Returns:
            The file's path.
        """
        if isinstance(value, pd.DataFrame):
            path = self.path(f"{name}.parquet")
            table = value.copy(deep=False)
            table.attrs = {}  # such as the seconds that a cached table took
            write_table(path, table)
        else:
            path = self.path(f"{name}.json")
            write_json(path, value)
        return path

    def load(self, name: str, *, step: str) -> Any:
        """Read the artifact `name` of another step, or its `manifest`.

        Raises:
            UserError: The artifact is missing, or differs from what the step recorded; the sentence
                names the command that makes it.
        """
        again = (
            f"run notebooks/{step}.ipynb with the same subject and target first, or give as `run` "
            "a folder that 'make book' has filled, such as 'runs/default'."
        )
        manifest = read_manifest(self.folder, step)
        if name == Path(MANIFEST).stem and manifest:
            self._inputs[f"{step}/{MANIFEST}"] = manifest_hash(manifest)
            return manifest
        for suffix, read in ((".parquet", read_table), (".json", read_json)):
            if (name + suffix) in manifest.get("outputs", {}):
                path = self.path(name + suffix, step=step)
                if reason := why_changed(path, manifest["outputs"][path.name]):
                    raise UserError(
                        f"{reason}: run the same 'make' command again, which repeats that step; "
                        f"or {again}"
                    )
                self._inputs[f"{step}/{path.name}"] = manifest["outputs"][path.name]
                return read(path)
        raise UserError(f"{self.path(name, step=step)} is missing: {again}")

    def finish(self, *, model_hash: str = "", times: dict[str, Any] | None = None) -> dict:
        """Write `manifest.json`: inputs, outputs, settings, code version and duration of the step.

        Args:
            model_hash: `helpers.models.model_hash` of the step's model.
            times: Name → value that the clock decided. It differs between equal runs and is stored
                only here, so that artifacts of equal runs are equal.

        Returns:
            The manifest.
        """
        place = self._own_place()
        manifest = {
            "step": self.step,
            "settings": self.settings.model_dump(mode="json"),
            "settings_hash": content_hash(self.settings.model_dump(mode="json")),
            "seeds": [getattr(self.settings, "seed", 0)],
            "profile": getattr(self.settings, "profile", ""),
            "model_hash": model_hash,
            "inputs": self._inputs,
            "outputs": file_hashes(place, without=(MANIFEST,)),
            "commit": git_commit(),
            "versions": versions(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._clock, 1),
            "times": times or {},
            "peak_memory_mb": peak_memory_mb(),
        }
        write_json(place / MANIFEST, manifest)
        if str(place) != os.environ.get(ARTIFACTS_VARIABLE):
            self._published.close()
            self._place = step_folder(self.folder, self.step)  # for artifacts saved after the end
        return manifest


def peak_memory_mb() -> int:
    """Return the largest resident size of this process so far, in mebibytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kibibytes
    return round(peak / unit)
