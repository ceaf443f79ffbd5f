"""The rules of CONTRIBUTING that a program can check, on the source of `helpers`."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.book.settings import ROOT
from helpers.evaluation.attacks.registry import attack
from helpers.methods.registry import METHODS, method
from helpers.sae import registry as sae_registry

# A package may import those before it, and itself.
PACKAGES = (
    "errors",
    "io",
    "stats",
    "models",
    "forward",
    "facts",
    "tracing",
    "training",
    "requests",
    "sae",
    "methods",
    "evaluation",
    "organism",
    "plots",
    "book",
)
MAX_LINES = 350
QUESTION_WORDS = ("What", "Whether", "How", "Where", "Which")
VAGUE = {"found", "mine", "how", "told", "ways"}  # a variable names its content and its kind
FILES = sorted((ROOT / "helpers").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of `helpers` that a tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("helpers"))


def inside_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield node


def relative(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_packages_import_one_way():
    order = {f"helpers.{package}": i for i, package in enumerate(PACKAGES)}
    upward = []
    for path, tree in TREES.items():
        importer = ".".join(module_name(path).split(".")[:2])
        for name in imported(tree):
            package = ".".join(name.split(".")[:2])
            if importer in order and order.get(package, 0) > order[importer]:
                upward.append(f"{module_name(path)} imports {name}")
    assert {path.relative_to(ROOT).parts[1].removesuffix(".py") for path in FILES} == {
        "__init__",
        *PACKAGES,
    }
    assert not upward


def test_no_module_imports_itself_through_others():
    edges = {module_name(path): set(imported(tree)) & set(MODULES) for path, tree in TREES.items()}
    # A package's `__init__` imports its modules, which do not import it: leave out such edges.
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for name in sorted(edges[module] - {module}):
            if cycle := visit(name, (*path, module)):
                return cycle
        done.add(module)
        return []

    assert not [cycle for module in sorted(edges) if (cycle := visit(module, ()))]


@pytest.mark.parametrize("folder", ["surgery", "training", "inference", "controls"])
def test_methods_do_not_import_each_other(folder):
    registered = {entry.function.__module__ for entry in METHODS.values()}
    siblings = [m for m in MODULES if m.startswith(f"helpers.methods.{folder}.")]
    imports = {m: set(imported(TREES[MODULES[m]])) for m in siblings}
    pairs = itertools.permutations([m for m in siblings if m in registered], 2)
    assert not [(a, b) for a, b in pairs if b in imports[a]]


def test_docstrings_do_not_begin_with_a_question_word():
    begun = [
        relative(path, getattr(node, "lineno", 1))
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and (ast.get_docstring(node) or "").startswith(QUESTION_WORDS)
    ]
    assert not begun


def test_variables_are_named_by_their_content():
    vague = [
        f"{relative(path, node.lineno)} {node.id}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE
    ]
    assert not vague


def test_modules_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n >= MAX_LINES}


def test_an_import_inside_a_function_says_why():
    """On its line, on the line above, or above the imports that it follows."""
    silent = []
    for path, tree in TREES.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in inside_functions(tree):
            first = node.lineno - 1
            while lines[first - 1].lstrip().startswith(("import ", "from ")):
                first -= 1
            said = [*lines[first - 2 : first], *lines[first : node.end_lineno]]
            if not any("#" in line for line in said):
                silent.append(relative(path, node.lineno))
    assert not silent


def test_registries_refuse_a_doubled_name():
    for register in (method("rome", family="surgery"), attack("prefill", budget="none")):
        with pytest.raises(ValueError, match="There are two"):
            register(METHODS["rome"].function)
    names = [key.value for key in _dict_keys(sae_registry)]
    assert len(names) == len(set(names)) == len(sae_registry.ARCHITECTURES)


def _dict_keys(module) -> list[ast.Constant]:
    tree = TREES[Path(module.__file__)]
    return next(node for node in ast.walk(tree) if isinstance(node, ast.Dict)).keys


def test_modules_of_tests_have_names_of_their_own():
    """Folders of tests are no packages: of two files of one name, an import finds either.

    pytest itself loads every `conftest.py`; nobody else can say which one is meant.
    """
    files = sorted((ROOT / "tests").rglob("*.py"))
    names = [path.stem for path in files if path.stem != "conftest"]
    assert sorted(set(names)) == sorted(names)
    assert not [path for path in files if "from conftest" + " import" in path.read_text("utf-8")]
