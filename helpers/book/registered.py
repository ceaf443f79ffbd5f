"""Names of methods and attacks, read from their files without importing torch.

A decorator registers a method (`@method("rome", family="surgery")`), so a new file is a new method.
This module reads the decorators as text. A test compares the names with the registries.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parents[1]
METHOD_FOLDERS = ("surgery", "training", "inference", "controls")


@dataclass(frozen=True)
class MethodName:
    """A method's entry in its file.

    Attributes:
        name: The method's name.
        family: `surgery`, `training`, `inference` or `control`.
        needs_saes: Whether it reads SAEs.
        takes: The forms of request that it takes (`helpers.methods.registry.FORMS`).
    """

    name: str
    family: str
    needs_saes: bool
    takes: tuple[str, ...] = ("pair",)


@cache
def method_names() -> tuple[MethodName, ...]:
    """List all methods, sorted by folder and file."""
    return tuple(name for name, _, _ in registered_methods())


def registered_methods() -> Iterator[tuple[MethodName, Path, ast.FunctionDef]]:
    """Yield each method's entry, its file and its function, sorted by folder and file."""
    for folder in METHOD_FOLDERS:
        for path in sorted((HELPERS / "methods" / folder).glob("*.py")):
            for call, function in _registrations(path, ("method", "training_method")):
                options: dict[Any, Any] = {k.arg: k.value for k in call.keywords}
                family = options["family"].value if "family" in options else "training"
                name = _text(call.args[0], path)
                takes = ast.literal_eval(options["takes"]) if "takes" in options else ("pair",)
                yield MethodName(name, family, "sae_sites" in options, takes), path, function


@cache
def attack_names() -> tuple[str, ...]:
    """List all attacks, sorted by file."""
    paths = sorted((HELPERS / "evaluation" / "attacks").glob("*.py"))
    calls = [(call, path) for path in paths for call, _ in _registrations(path, ("attack",))]
    return tuple(_text(call.args[0], path) for call, path in calls)


@cache
def renamed_attacks() -> dict[str, str]:
    """Read the names that attacks had before: old name → name."""
    path = HELPERS / "evaluation" / "attacks" / "registry.py"
    for statement in _parsed(path).body:
        if isinstance(statement, ast.Assign) and _name(statement) == "RENAMED_ATTACKS":
            return ast.literal_eval(statement.value)
    return {}


def _registrations(path: Path, decorators: tuple[str, ...]) -> Iterator[tuple[ast.Call, Any]]:
    """Yield calls of the decorators at a module's top level, each with the statement around it."""
    for statement in _parsed(path).body:
        is_function = isinstance(statement, ast.FunctionDef)
        for node in statement.decorator_list if is_function else ast.walk(statement):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in decorators:
                yield node, statement


def _name(assignment: ast.Assign) -> str:
    """Return the name that an assignment binds, or an empty text."""
    return getattr(assignment.targets[0], "id", "")


def _text(node: Any, path: Path) -> str:
    """Return a text given in the code, directly or as a constant of the module."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    for statement in _parsed(path).body:
        if isinstance(statement, ast.Assign) and _name(statement) == node.id:
            return ast.literal_eval(statement.value)
    raise ValueError(f"{path}: the name of what is registered is no constant")


@cache
def _parsed(path: Path) -> Any:
    return ast.parse(path.read_text(encoding="utf-8"))
