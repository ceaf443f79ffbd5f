"""Where a benchmark's result goes: a file that the book reads, and the terminal."""

import json
from pathlib import Path
from typing import Any

from helpers.artifacts import versions, write_json


def report(name: str, result: dict[str, Any]) -> None:
    """Write `results/<name>.json`, with the versions that it was measured with, and print it.

    Args:
        name: Of the file.
        result: title, how, rows; `versions` of what else was measured, if anything.
    """
    result = {**result, "versions": versions() | result.get("versions", {})}
    write_json(Path(__file__).parent / "results" / f"{name}.json", result)
    print(json.dumps(result, indent=1))
