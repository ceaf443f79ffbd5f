"""The page of all methods: each with its idea, source, requests, hyperparameters and cost.

It is read from the methods' files without importing torch, so a new method is on it by itself.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from helpers.book.method_sources import OWN, SOURCES
from helpers.book.registered import HELPERS, MethodName, registered_methods
from helpers.io.parquet import read_table
from helpers.io.safe_text import escape_markdown, inline_code

FAMILIES = {
    "surgery": "Edits of the weights",
    "training": "Training",
    "inference": "Interventions at inference time",
    "control": "Controls",
}
FORMS = {"pair": "a pair", "pairs": "several facts", "text": "text"}


NOT_MEASURED = "not measured"
PUBLISHED = "†"  # marks a time that was not measured with the others


def methods_page(results: Path) -> str:
    """Write the sections of the page in Markdown: one for each family, an entry a method.

    Args:
        results: The folder of measurements. `methods.json` has times and sizes of edits that were
            made under equal conditions; for the others, `facts.parquet` has times.
    """
    costs = {name: (f"{median:.3g} {PUBLISHED}", "") for name, median in _published(results)}
    costs |= _costs(results / "methods.json")
    entries = list(registered_methods())
    sections = []
    for family, title in FAMILIES.items():
        members = [
            (name, path, function) for name, path, function in entries if name.family == family
        ]
        rows = [_row(name, function, costs) for name, _, function in members]
        table = [
            "| method | idea | forgets | seconds | patch, kB |",
            "| :-- | :-- | :-- | --: | --: |",
        ]
        details = [_details(name, path, function) for name, path, function in members]
        sections.append("\n".join([f"## {title}\n", *table, *rows, "", *details]))
    return "\n\n".join(sections)


def _costs(path: Path) -> dict[str, tuple[str, str]]:
    """Read each method's seconds and kilobytes, as text; none if they were not measured."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {
        row["method"]: (
            f"{row['seconds']:.3g}" if row["seconds"] >= 0.01 else "< 0.01",
            f"{row['edit kB']:,.0f}",
        )
        for row in rows
    }


def _published(results: Path) -> Iterator[tuple[str, float]]:
    """Yield each method of the published results with the median seconds of its held-out edits."""
    path = results / "facts.parquet"
    if path.exists():
        table = read_table(path)
        times = table[(table["metric"] == "seconds") & (table["split"] == "heldout")]
        yield from times.groupby("method", observed=True)["value"].median().items()


def _row(name: MethodName, function: ast.FunctionDef, costs: Mapping[str, tuple[str, str]]) -> str:
    """Write a method's row of the table."""
    forms = ", ".join(FORMS[form] for form in name.takes)
    forms += "; needs SAEs" if name.needs_saes else ""
    numbers = " | ".join(text or NOT_MEASURED for text in costs.get(name.name, ("", "")))
    link = f"[{inline_code(name.name)}](method-{name.name.replace('_', '-')})"
    return f"| {link} | {_text(_paragraphs(function)[0], in_table=True)} | {forms} | {numbers} |"


def _details(name: MethodName, path: Path, function: ast.FunctionDef) -> str:
    """Write a method's entry: its docstring, its hyperparameters, its code and its papers."""
    module = ".".join(path.relative_to(HELPERS.parent).with_suffix("").parts)
    paragraphs = [_text(text) for text in _paragraphs(function)]
    parameters = [
        f"- {inline_code(f'{field} = {default}')}{f': {_text(description)}' if description else ''}"
        for field, default, description in _hyperparameters(path, function)
    ]
    sources = ",".join(SOURCES.get(name.name, ()))
    papers = f" Papers: {{cite:p}}`{sources}`." if sources else ""
    if name.name in OWN:
        papers = f" A method of this suite's own, which builds on {{cite:t}}`{sources}`."
    return "\n\n".join(
        [
            f"(method-{name.name.replace('_', '-')})=\n### {inline_code(name.name)}",
            *paragraphs,
            *(["\n".join(parameters)] if parameters else []),
            f"Code: {{py:obj}}`{module}.{function.name}`.{papers}",
        ]
    )


def _paragraphs(function: ast.FunctionDef) -> list[str]:
    """Return a docstring's paragraphs up to its first section."""
    text = ast.get_docstring(function) or ""
    text = re.split(r"\n(?:Args|Returns|Raises):", text)[0]
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def _hyperparameters(path: Path, function: ast.FunctionDef) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and description of the hyperparameters that a method's class sets.

    The description is empty where the base class has it.
    """
    annotations = {a.arg: getattr(a.annotation, "id", "") for a in function.args.args}
    node = _class(path, annotations.get("hparams", ""))
    described = _attributes(ast.get_docstring(node) or "")
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or line.value is None:
            continue
        if "ClassVar" not in ast.unparse(line.annotation):
            field = getattr(line.target, "id", "")
            yield field, ast.unparse(line.value), described.get(field, "")


def _class(path: Path, name: str) -> ast.ClassDef:
    """Return a class that a module of ours defines or imports."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            module = (node.module or "").replace(".", "/")
            return _class(HELPERS.parent / f"{module}.py", name)
    raise ValueError(f"{path}: the hyperparameters of a method have no class")


def _attributes(docstring: str) -> dict[str, str]:
    """Read the section `Attributes` of a docstring: name → description."""
    _, _, section = docstring.partition("Attributes:\n")
    described, name = {}, ""
    for line in section.splitlines():
        if match := re.match(r" {4}(\w+): (.*)", line):
            name, described[match[1]] = match[1], match[2]
        elif name and line.startswith(" " * 8):
            described[name] += f" {line.strip()}"
        else:
            break
    return described


def _text(text: str, *, in_table: bool = False) -> str:
    """Write a docstring's text in Markdown: code stays code, the rest has no markup."""
    parts = text.split("`")
    return "".join(
        inline_code(part, in_table=in_table) if n % 2 else escape_markdown(part)
        for n, part in enumerate(parts)
    )
