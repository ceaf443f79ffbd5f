"""Report a benchmark's result: to a file that the book reads, and to the terminal."""

import json
from pathlib import Path
from typing import Any

from helpers.io.files import write_json
from helpers.io.manifest import versions

RESULTS = Path(__file__).parent / "results"


def report(name: str, result: dict[str, Any]) -> None:
    """Write `results/<name>.json`, with the versions that it was measured with, and print it.

    Args:
        name: Of the file.
        result: title, how, rows; `versions` of what else was measured, if anything.
    """
    result = {**result, "versions": versions() | result.get("versions", {})}
    write_json(RESULTS / f"{name}.json", result)
    print(json.dumps(result, indent=1))


def reported(name: str) -> list[dict[str, Any]]:
    """Read the rows that `report` wrote last; none before the first."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []
