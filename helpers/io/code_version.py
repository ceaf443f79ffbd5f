"""Hashes of source code, for the keys of cached results.

Comments, docstrings and layout don't change a hash, so a change of wording costs nobody a cache. A
change of the code of any imported module does.
"""

import ast
from functools import cache
from pathlib import Path

from helpers.errors import UserError
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
    return closure(direct_imports(parsed(path), path))


def closure(modules: list[Path]) -> list[Path]:
    """Return the given modules and all that they import, directly or through others; sorted."""
    seen, todo = set(modules), list(modules)
    while todo:
        for module in _imports_of(todo.pop()):
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
    names, at_run_time = set(), False
    inside = path.suffix == ".py" and path.resolve().is_relative_to(REPOSITORY)
    package = _module_name(path).split(".") if inside else []
    if package and path.name != "__init__.py":
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            at_run_time |= any(alias.name == "pkgutil" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        at_run_time |= getattr(node, "attr", getattr(node, "id", "")) == "import_module"
    files = [file for name in names if name.split(".")[0] == "helpers" for file in _files(name)]
    if at_run_time and path.name == "__init__.py":
        files += path.parent.rglob("*.py")
    return files


@cache
def _imports_of(path: Path) -> list[Path]:
    return direct_imports(parsed(path), path)


@cache
def module_hash(path: Path) -> str:
    """Hash the code of one module alone: its syntax tree without docstrings."""
    tree = parse(path.read_text(encoding="utf-8"), path)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return content_hash(ast.dump(tree))


def _files(module: str) -> list[Path]:
    """List the files that importing `module` runs: its packages' and its own."""
    parts = module.split(".")
    packages = [REPOSITORY.joinpath(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)]
    files = [*packages, REPOSITORY.joinpath(*parts).with_suffix(".py")]
    return [file for file in files if file.is_file()]


def _module_name(path: Path) -> str:
    relative = path.resolve().relative_to(REPOSITORY).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")
