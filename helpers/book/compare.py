"""Compare two runs: which settings and which numbers differ, chapter by chapter.

    python -m helpers.book.compare runs/default runs/mine

`make compare RUNS="runs/default runs/mine"` calls this.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.book.progress import echo
from helpers.book.settings import NOTEBOOKS
from helpers.errors import UserError
from helpers.io.files import read_json
from helpers.io.manifest import read_manifest, step_folder
from helpers.io.safe_text import visible

NOT_COMPARED = ("run", "profile")  # settings that name a run and change no number
MISSING = "–"  # one of the runs lacks this number


def compare_runs(first: str | Path, second: str | Path) -> pd.DataFrame:
    """List the settings and the numbers of the prose in which two runs differ.

    Chapters that only one of the runs has are left out.

    Args:
        first: A run folder.
        second: Another one.

    Returns:
        One row a setting or number that differs, in the order of the chapters, settings first:
        chapter, kind (`setting` or `number`), name, first, second, difference (second − first,
        NaN where one of them is no number).

    Raises:
        UserError: The runs have no finished chapter in common.
    """
    folders = [Path(first), Path(second)]
    rows, n_common = [], 0
    for stem in NOTEBOOKS:
        manifests = [read_manifest(folder, stem) for folder in folders]
        if not all("numbers.json" in manifest.get("outputs", {}) for manifest in manifests):
            continue
        n_common += 1
        settings = [manifest.get("settings", {}) for manifest in manifests]
        numbers = [read_json(step_folder(folder, stem) / "numbers.json") for folder in folders]
        rows += [(stem, "setting", *row) for row in _differences(*settings)]
        rows += [(stem, "number", *row) for row in _differences(*numbers)]
    if not n_common:
        raise UserError(
            f"{visible(first)} and {visible(second)} have no finished chapter in common: give two "
            "folders that 'make book' or 'make run' has filled, such as runs/default."
        )
    columns = ["chapter", "kind", "name", "first", "second", "difference"]
    return pd.DataFrame(rows, columns=columns)


def _differences(
    first: dict[str, Any], second: dict[str, Any]
) -> list[tuple[str, Any, Any, float]]:
    """List (name, first, second, difference) of the values that differ."""
    rows = []
    for name in dict.fromkeys([*first, *second]):
        values = first.get(name, MISSING), second.get(name, MISSING)
        if name not in NOT_COMPARED and values[0] != values[1]:
            are_numbers = all(type(value) in (int, float) for value in values)
            rows.append((name, *values, values[1] - values[0] if are_numbers else float("nan")))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("first", help="a run folder")
    parser.add_argument("second", help="another run folder")
    options = parser.parse_args(arguments)
    try:
        table = compare_runs(options.first, options.second)
    except UserError as error:
        echo(str(error), sys.stderr)
        return 1
    if table.empty:
        echo("The two runs have the same settings and the same numbers.")
        return 0
    for column in ("first", "second"):
        table[column] = [
            f"{value:g}" if isinstance(value, float) else visible(value) for value in table[column]
        ]
    echo(table.to_string(index=False, na_rep="", max_colwidth=40, float_format="{:+.4g}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
