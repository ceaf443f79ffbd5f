"""Cells that a page shows folded: the parameters, the values of the run, and the set-up."""

import re
from collections.abc import Mapping
from typing import Any

FOLDED = "hide-cell"  # myst-nb shows such a cell behind a button
FOLDS = {"parameters": "hide-input", "injected-parameters": FOLDED}  # a cell's tag → myst-nb's
REMOVED = "remove-cell"
SET_UP = re.compile(r"^chapter = Chapter\(", re.MULTILINE)  # in the cell with a notebook's imports


def folded(cell: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fold the cells of parameters and the set-up cell; keep any other cell.

    Args:
        cell: A cell of an executed notebook.
        values: The injected parameters, without folders of the machine; they are shown in place of
            those that the cell has.
    """
    tags = cell.get("metadata", {}).get("tags", [])
    if REMOVED in tags and SET_UP.search("".join(cell["source"])):
        return _tagged(cell, [FOLDED if tag == REMOVED else tag for tag in tags])
    folds = [FOLDS[tag] for tag in tags if tag in FOLDS]
    if not folds:
        return cell
    cell = _tagged(cell, list(dict.fromkeys([*tags, *folds])))
    if "injected-parameters" not in tags:
        return cell
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    return cell | {"source": "\n".join(["# Parameters", *lines])}


def _tagged(cell: dict[str, Any], tags: list[str]) -> dict[str, Any]:
    """Return a cell with other tags."""
    return cell | {"metadata": cell["metadata"] | {"tags": tags}}
