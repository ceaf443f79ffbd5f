"""Decide which steps of a run are up to date.

A step's manifest records hashes of its sources (cells, code, settings, versions, files), of its
inputs and of its outputs. The step is up to date when all hashes still hold. Times of files and
Snakemake's own records don't count, so a run may be moved or copied.

Snakemake decides by files. For it, a step that is up to date has a mark, `logs/<step>.done`.
"""

import os
from pathlib import Path
from typing import Any

from helpers.book.profiles import MODELS, request_files
from helpers.book.settings import ROOT
from helpers.book.sources import (
    file_fingerprint,
    model_fingerprint,
    notebook_data,
    notebook_hash,
    notebook_imports,
    notebook_path,
    upstream_notebooks,
)
from helpers.errors import UserError
from helpers.io.files import read_json, write_json
from helpers.io.hashing import content_hash, file_hash
from helpers.io.manifest import (
    MANIFEST,
    manifest_hash,
    read_manifest,
    step_folder,
    versions,
    why_changed,
)

BOOK = "book"
INDEX = Path("book/_build/html/index.html")  # in the run folder, by helpers.book.build
TOOL_FOLDERS = {"__pycache__", ".ipynb_checkpoints", "_build"}  # among the book's sources
ADDRESSES = ("BOOK_REPOSITORY", "BOOK_BRANCH", "BOOK_URL")
RECORD = "record"  # name of the part of a manifest that this module writes


def done_mark(folder: Path, step: str) -> Path:
    """Return the path of the file that exists as long as a step is up to date."""
    return folder / "logs" / f"{step}.done"


def input_hashes(stem: str, values: dict[str, Any]) -> dict[str, str]:
    """Hash everything that a notebook's result depends on, except artifacts of other steps.

    Args:
        stem: The notebook.
        values: Its parameters. The run folder is left out, since a run can be moved.

    Returns:
        Name of the source → hash.
    """
    source = notebook_path(stem)
    files = {name: values[name] for name in ("pair_file", "patch") if values.get(name)}
    files |= {
        f"request {n}": f for n, f in enumerate(request_files(values.get("request_file", "")))
    }
    models = {name: values[name] for name in MODELS if values.get(name)}
    folders = [folder.strip() for folder in values.get("saes", "").split(",") if folder.strip()]
    return {
        "cells": notebook_hash(source),
        "code": content_hash(_contents(notebook_imports(source))),
        "data": content_hash(_contents(notebook_data(source))),
        "settings": content_hash({k: v for k, v in values.items() if k != "run"}),
        "versions": content_hash(versions()),
        **{name: model_fingerprint(value) for name, value in models.items()},
        "saes": content_hash([file_fingerprint(f) if os.path.isdir(f) else "" for f in folders]),
        **{k: content_hash(Path(f)) if os.path.isfile(f) else "" for k, f in files.items()},
    }


def why_outdated(folder: Path, stem: str, hashes: dict[str, str]) -> str:
    """Say in a few words why a step has to be made again; empty if it is up to date.

    Args:
        folder: The run folder.
        stem: The notebook.
        hashes: Its present `input_hashes`.
    """
    manifest = read_manifest(folder, stem)
    if not manifest:
        return "its manifest is missing or damaged"
    record = manifest.get(RECORD)
    if not isinstance(record, dict) or not isinstance(record.get("made_from"), dict):
        return "it was not made by the pipeline"
    recorded_hashes = record["made_from"]
    if changed := [name for name in hashes if hashes[name] != recorded_hashes.get(name)]:
        return f"{', '.join(changed)} changed"
    files = {step_folder(folder, stem) / name: h for name, h in manifest["outputs"].items()}
    files[folder / "notebooks" / f"{stem}.ipynb"] = record.get("notebook", "")
    for path, recorded in files.items():
        if reason := why_changed(path, recorded):
            return reason
    for name, recorded in manifest["inputs"].items():
        step, _, file = name.partition("/")
        upstream = read_manifest(folder, step)
        outputs = upstream.get("outputs", {}) | {MANIFEST: manifest_hash(upstream)}
        if outputs.get(file) != recorded:
            return f"{name} changed"
    return ""


def record(place: Path, notebook: Path, hashes: dict[str, str], times: dict[str, Any]) -> None:
    """Add to a step's manifest the hashes that `why_outdated` compares, and papermill's times.

    Args:
        place: The folder of the manifest.
        notebook: The executed notebook.
        hashes: `input_hashes` from before the step began.
        times: Start and end of the step, and its seconds.

    Raises:
        UserError: The step left no manifest.
    """
    if not (place / MANIFEST).exists():
        raise UserError(f"{place.name} left no {MANIFEST}: its last cell should finish its run.")
    manifest = read_json(place / MANIFEST)
    manifest["papermill"] = times
    manifest[RECORD] = {"made_from": hashes, "notebook": content_hash(notebook)}
    write_json(place / MANIFEST, manifest)


def unmark_outdated(folder: Path, notebooks: dict[str, dict[str, Any]]) -> None:
    """Delete the marks of steps that are not up to date, and of the steps that read from them.

    Args:
        folder: The run folder.
        notebooks: Stem → parameters.
    """
    outdated = {
        s for s, values in notebooks.items() if why_outdated(folder, s, input_hashes(s, values))
    }
    reads = {stem: upstream_notebooks(notebook_path(stem), list(notebooks)) for stem in notebooks}
    while more := {s for s, others in reads.items() if outdated & set(others)} - outdated:
        outdated |= more
    unmarked = {s for s in notebooks if not done_mark(folder, s).exists()}
    if outdated | unmarked or not _book_is_current(folder, list(notebooks)):
        outdated.add(BOOK)
    for step in outdated:
        done_mark(folder, step).unlink(missing_ok=True)


def mark_book(folder: Path, stems: list[str]) -> None:
    """Record that the book was made from the present sources and chapters."""
    write_json(done_mark(folder, BOOK), _book_hashes(folder, stems))


def _book_is_current(folder: Path, stems: list[str]) -> bool:
    try:
        recorded = read_json(done_mark(folder, BOOK))
    except UserError:
        return False
    return (folder / INDEX).is_file() and recorded == _book_hashes(folder, stems)


def _book_hashes(folder: Path, stems: list[str]) -> dict[str, str]:
    pages = [*(ROOT / "book").rglob("*"), *(ROOT / "benchmarks").rglob("*.json")]
    code = (ROOT / "helpers").rglob("*.py")  # the API reference shows them all
    sources = [*pages, *code, ROOT / "_config.yml", ROOT / "requirements.lock"]
    chapters = [folder / "notebooks" / f"{stem}.ipynb" for stem in stems]
    chapters += [step_folder(folder, stem) / MANIFEST for stem in stems]
    return {
        "sources": content_hash(_contents([p for p in sources if not TOOL_FOLDERS & set(p.parts)])),
        "chapters": content_hash(*(p for p in chapters if p.is_file())),
        "addresses": content_hash([os.environ.get(name, "") for name in ADDRESSES]),
    }


def _contents(paths: list[Path]) -> dict[str, str]:
    """Return name in the source tree → hash of the content."""
    return {p.relative_to(ROOT).as_posix(): file_hash(p) for p in paths if p.is_file()}
