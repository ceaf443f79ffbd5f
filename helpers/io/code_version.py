"""Hashes of source code, for the keys of cached results.

Comments, docstrings and layout don't change a hash, so a change of wording costs nobody a cache. A
change of the code of any imported module does.
"""

import ast
import contextlib
import sys
from collections.abc import Callable, Collection, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from helpers.errors import UserError
from helpers.io.files import cache_dir, read_json, write_json
from helpers.io.hashing import content_hash

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def code_hash(path: str | Path) -> str:
    """Hash the code of a module and of every module of `helpers` that it imports.

    Args:
        path: The module's file, as in `code_hash(__file__)`.

    Returns:
        16 hexadecimal digits, to be part of a cache's key.
    """
    path = Path(path).resolve()
    return content_hash(sorted(module_hash(p) for p in {path, *imported_modules(path)}))


def imported_modules(path: Path) -> list[Path]:
    """Find the modules of `helpers` that a module imports, and those that they import.

    A package that finds its modules at run time (`pkgutil`, `import_module`) counts as a whole.

    Returns:
        Their files, sorted.
    """
    return closure(_imports_of(path))


def closure(modules: list[Path], imports: Callable[[Path], list[Path]] | None = None) -> list[Path]:
    """Return the given modules and all that they import, directly or through others; sorted.

    Args:
        modules: Files.
        imports: File → files; what an import runs by default.
    """
    seen, todo = set(modules), list(modules)
    while todo:
        for module in (imports or _imports_of)(todo.pop()):
            if module not in seen:
                seen.add(module)
                todo.append(module)
    return sorted(seen)


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a file of Python.

    Raises:
        UserError: It is not valid Python.
    """
    return parse(path.read_text(encoding="utf-8"), path)


def parse(text: str, path: Path) -> ast.Module:
    """Parse Python code; an error names `path`."""
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path} is not valid Python: {error}.") from None


def direct_imports(tree: ast.Module, path: Path) -> list[Path]:
    """Find the files of `helpers` that are run by the imports of a parsed file."""
    return _files_of(*imported_names(tree, path), path)


def imported_names(tree: ast.Module, path: Path) -> tuple[list[str], bool]:
    """Find the names that a parsed file imports, and whether it finds modules at run time."""
    names, at_run_time = set(), False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            at_run_time |= any(alias.name == "pkgutil" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, path)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        at_run_time |= getattr(node, "attr", getattr(node, "id", "")) == "import_module"
    return sorted(name for name in names if name.split(".")[0] == "helpers"), at_run_time


def _files_of(names: Iterable[str], at_run_time: bool, path: Path) -> list[Path]:
    """List the files that run when `path` imports modules of `helpers` by these names."""
    files = [file for name in names for file in _files(name)]
    if at_run_time and path.name == "__init__.py":
        files += path.parent.rglob("*.py")
    return files


def code_in_use(paths: Iterable[Path], rooms: Collection[str]) -> str:
    """Hash the code of modules and of what they use by name, directly or through others.

    A package that hands names on (`from helpers.methods import unlearn`) counts as the modules
    that define those names. So one method's hash does not change with another method's file.

    Args:
        paths: Files of the modules.
        rooms: Folders of `helpers` whose files count; the others are looked through, not hashed.

    Returns:
        16 hexadecimal digits.
    """
    modules = closure([Path(p).resolve() for p in paths], _used_by)
    inside = [m for m in modules if m.relative_to(REPOSITORY).parts[1] in rooms]
    return content_hash(sorted(module_hash(m) for m in inside))


@cache
def _used_by(path: Path) -> list[Path]:
    """List the files of `helpers` that define the names that a module imports."""
    files = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            base = _base(node, path)
            if base.split(".")[0] == "helpers":
                files |= {_defining_file(base, alias.name) for alias in node.names}
    return sorted(files)


def _defining_file(module: str, name: str) -> Path:
    """Find the file that defines `name`, which is imported from `module`."""
    folder = REPOSITORY.joinpath(*module.split("."))
    candidates = [folder.with_suffix(".py"), folder / f"{name}.py", folder / name / "__init__.py"]
    if file := next((c for c in candidates if c.is_file()), None):
        return file
    package = folder / "__init__.py"
    for node in ast.walk(parsed(package)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _defining_file(_base(node, package), alias.name)
    return package


def _base(node: ast.ImportFrom, path: Path) -> str:
    """Return the full name of the module that an import statement of a file takes names from."""
    inside = path.suffix == ".py" and path.resolve().is_relative_to(REPOSITORY)
    package = _module_name(path).split(".") if inside else []
    if package and path.name != "__init__.py":
        package.pop()
    parents = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else [])])


@cache
def _imports_of(path: Path) -> list[Path]:
    summary = _summary(path)
    return _files_of(summary.names, summary.at_run_time, path)


def module_hash(path: Path) -> str:
    """Hash the code of one module alone: its syntax tree without docstrings."""
    return _summary(path).hash


class _Summary(NamedTuple):
    """The code of a module in short: its hash, and what it imports (`imported_names`)."""

    hash: str
    names: list[str]
    at_run_time: bool


@cache
def _summary(path: Path) -> _Summary:
    """Read a module, or what the cache has of a file of this text.

    To parse and walk all of `helpers` takes seconds, and each process of a run has to know it.
    """
    text = path.read_text(encoding="utf-8")
    with contextlib.suppress(UserError, TypeError):
        return _Summary(**read_json(_entry(text, path)))
    tree = parse(text, path)
    names, at_run_time = imported_names(tree, path)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    summary = _Summary(content_hash(ast.dump(tree)), names, at_run_time)
    with contextlib.suppress(OSError, UserError):  # a cache that cannot be written costs time alone
        write_json(_entry(text, path), summary._asdict())
    return summary


def _entry(text: str, path: Path) -> Path:
    """Return the file of the cache for a module of this text.

    Raises:
        UserError: There is no folder for the cache.
    """
    place = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
    return cache_dir() / "code" / f"{content_hash(text, place.as_posix(), *_reader())}.json"


@cache
def _reader() -> tuple[str, str]:
    """Return what summaries depend on beside the module: this file's code, and Python's version."""
    return Path(__file__).read_text(encoding="utf-8"), sys.version


def _files(module: str) -> list[Path]:
    """List the files that importing `module` runs: its packages' and its own."""
    parts = module.split(".")
    packages = [REPOSITORY.joinpath(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)]
    files = [*packages, REPOSITORY.joinpath(*parts).with_suffix(".py")]
    return [file for file in files if file.is_file()]


def _module_name(path: Path) -> str:
    relative = path.resolve().relative_to(REPOSITORY).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")
