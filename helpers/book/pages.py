"""Pages of the book, made from executed notebooks and their manifests.

A page is the executed notebook with its parameters and its set-up folded, a line that says with
what it was run, and its provenance. The status page summarises all notebooks. This module neither
runs a notebook nor imports torch.
"""

import ast
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.book.charts import VEGA_LITE, chart_html
from helpers.book.folding import folded
from helpers.book.run_line import run_line
from helpers.book.settings import ROOT
from helpers.book.sortable import IN_JUPYTER
from helpers.errors import UserError
from helpers.io.safe_text import escape_markdown, inline_code, visible

GLUE = "application/papermill.record/"  # myst-nb's prefix of the types of glued values


@dataclass(frozen=True)
class Executed:
    """One executed notebook of a run.

    Attributes:
        stem: The notebook's name without `.ipynb`.
        notebook: Its content (nbformat 4, as plain data).
        manifest: The manifest that `helpers.io.run.Run.finish` wrote.
    """

    stem: str
    notebook: dict[str, Any]
    manifest: dict[str, Any]

    @classmethod
    def read(cls, run_folder: Path, stem: str) -> "Executed":
        """Read `notebooks/<stem>.ipynb` and `artifacts/<stem>/manifest.json` of a run.

        Raises:
            UserError: A file is missing or damaged, the notebook failed or was not run, or a figure
                is empty or has no caption or alt text.
        """
        path = run_folder / "notebooks" / f"{stem}.ipynb"
        notebook = _read_json(path, stem)
        manifest = _read_json(run_folder / "artifacts" / stem / "manifest.json", stem)
        papermill = notebook.get("metadata", {}).get("papermill")
        if papermill is not None:
            papermill |= manifest.get("papermill", {})  # helpers.book.steps moves the times there
        if papermill is None or papermill.get("duration") is None:
            raise UserError(
                f"{path} has no record of a finished run by papermill: run it again with "
                "'make book', which executes what the book needs."
            )
        if papermill.get("exception"):
            raise UserError(
                f"{path} stopped with an error, so it cannot become a page: open it, mend the "
                f"cause, and run 'make book' again."
            )
        for cell in notebook["cells"]:
            _check_figure(cell, path)
        return cls(stem, notebook, manifest)

    @property
    def papermill(self) -> dict[str, Any]:
        """Papermill's metadata of the notebook, with the times."""
        return self.notebook["metadata"]["papermill"]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that papermill injected."""
        return self.papermill.get("parameters") or {}

    @property
    def settings(self) -> dict[str, Any]:
        """All parameters of the notebook."""
        return self.manifest.get("settings", {})

    def page(self) -> str:
        """Return the page as a notebook in JSON, with the provenance as its last section."""
        values = {name: portable(value) for name, value in self.parameters.items()}
        cells = [_for_a_page(folded(cell, values)) for cell in self.notebook["cells"]]
        tags = [cell.get("metadata", {}).get("tags", []) for cell in cells]
        if at := next((i for i, of_cell in enumerate(tags) if "parameters" in of_cell), None):
            cells.insert(at, self._run_line())
        cells.append(self._times())
        cells.append(
            {
                "cell_type": "markdown",
                "id": "provenance",
                "metadata": {"tags": ["provenance"]},
                "source": self.provenance(),
            }
        )
        metadata = dict(self.notebook["metadata"])
        metadata.pop("papermill", None)  # the provenance shows the part that is for readers
        page = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        return json.dumps(page, indent=1, ensure_ascii=False)

    def _run_line(self) -> dict[str, Any]:
        """Make the cell that says with what the notebook was run."""
        settings = {"profile": self.manifest.get("profile", ""), **self.settings}
        words = settings | _glued(self.notebook)
        fact = {name: str(words.get(name, "")) for name in ("subject", "target")}
        settings = {name: portable(value) for name, value in settings.items()}
        source = run_line(self.stem, settings, **fact)
        return {"cell_type": "markdown", "id": "run-line", "metadata": {}, "source": source}

    def _times(self) -> dict[str, Any]:
        """Make a hidden cell that glues the values of `helpers.book.chapter.Chapter.glue_times`."""
        outputs = [
            {
                "output_type": "display_data",
                "data": {f"{GLUE}text/plain": repr(value)},
                "metadata": {"scrapbook": {"name": name, "mime_prefix": GLUE}},
            }
            for name, value in self.manifest.get("times", {}).items()
        ]
        return {
            "cell_type": "code",
            "id": "times",
            "execution_count": None,
            "metadata": {"tags": ["remove-cell"]},
            "source": "",
            "outputs": outputs,
        }

    def provenance(self) -> str:
        """Write the provenance of the page in Markdown, in a folded box."""
        manifest = self.manifest
        rows = {
            "Profile": _cell(manifest.get("profile")),
            "Settings": _pairs(self.settings),
            "Seeds": ", ".join(_cell(seed) for seed in manifest.get("seeds", [])),
            "Commit": _cell(manifest.get("commit")),
            "Model": f"{_cell(portable(self.settings.get('model')))}, weights "
            f"{_cell(manifest.get('model_hash') or 'not recorded')}",
            "Versions": _pairs(manifest.get("versions", {}), joint=" "),
            "Inputs": _pairs(manifest.get("inputs", {}), joint=" "),
            "Outputs": _pairs(manifest.get("outputs", {}), joint=" "),
            "Started": escape_markdown(manifest.get("started", "")),
            "Duration": f"{duration_in_words(self.papermill['duration'])} in all",
            "Peak memory": memory(manifest.get("peak_memory_mb")),
        }
        table = "\n".join(f"| {name} | {text} |" for name, text in rows.items() if text)
        summary = (
            f"Made by profile {inline_code(manifest.get('profile'))} in "
            f"{duration_in_words(self.papermill['duration'])}, "
            f"commit {inline_code(manifest.get('commit'))}"
        )
        command = self.command()
        longest = max(map(len, re.findall("`+", command)), default=0)
        fence = "`" * max(3, longest + 1)
        return (
            "## Provenance\n\n"
            f":::{{dropdown}} {summary}\n:class-container: provenance\n\n"
            f"|  |  |\n| :--- | :--- |\n{table}\n\n"
            "The same page again, in the repository's root:\n\n"
            f"{fence}bash\n{command}\n{fence}\n:::\n"
        )

    def command(self) -> str:
        """Return the papermill command that runs this notebook with the same parameters."""
        options = [
            f"-p {name} {shlex.quote(visible(portable(value)))}"
            for name, value in self.parameters.items()
            if name != "run" and value != ""
        ]
        start = f".venv/bin/papermill notebooks/{self.stem}.ipynb out.ipynb"
        return " \\\n  ".join([start, *options])


def _for_a_page(cell: dict[str, Any]) -> dict[str, Any]:
    """Turn charts into HTML, and drop the scripts that a page has in a file of its own."""
    if "outputs" not in cell:
        return cell
    outputs = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if VEGA_LITE in data:
            output = output | {"data": {"text/html": chart_html(data[VEGA_LITE])}}
        elif "text/html" in data:
            html = "".join(data["text/html"]).replace(IN_JUPYTER, "")
            output = output | {"data": data | {"text/html": html}}
        outputs.append(output)
    return cell | {"outputs": outputs}


def status_table(pages: list[Executed]) -> str:
    """Write a Markdown table of all notebooks (time, memory, profile, commit) and their sum."""
    lines = [
        "| notebook | result | time | peak memory | profile | commit |",
        "| :--- | :--- | ---: | ---: | :--- | :--- |",
    ]
    for page in pages:
        lines.append(
            f"| [](/notebooks/{page.stem}.ipynb) | [passed]{{.passed}} "
            f"| {duration_in_words(page.papermill['duration'])} "
            f"| {memory(page.manifest.get('peak_memory_mb'))} "
            f"| {_cell(page.manifest.get('profile'))} | {_cell(page.manifest.get('commit'))} |"
        )
    seconds = sum(page.papermill["duration"] for page in pages)
    last = max(str(page.papermill.get("end_time") or "") for page in pages)
    return "\n".join(lines) + (
        f"\n\nAll notebooks together took {duration_in_words(seconds)} of computing"
        f"{f'; the last one ended on {last[:10]} at {last[11:16]} UTC' if last else ''}. "
        "*Time* is papermill's, from the start of the kernel to the last cell; *peak memory* is "
        "the largest resident size of the notebook's process. A notebook that fails stops the "
        "build, so a published book has only passed ones.\n"
    )


def page_words(page: Executed) -> dict[str, str]:
    """Return the values of `{{ subject }}`, `{{ target }}`, ... in the prose pages of a run.

    Subject and target are those that the notebook glued, because a pair file overrides the
    settings.
    """
    names = ("subject", "target", "model")
    words = {name: str(portable(page.settings.get(name, ""))) for name in names}
    words |= {name: text for name, text in _glued(page.notebook).items() if name in words}
    return words | {"profile": str(page.manifest.get("profile", ""))}


def duration_in_words(seconds: float) -> str:
    """Format a duration in words.

    >>> duration(3.2), duration(41.7), duration(125)
    ('3.2 s', '42 s', '2 min 5 s')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def memory(megabytes: float | None) -> str:
    """Format mebibytes with a thousands separator, or a dash if they were not recorded."""
    return "–" if megabytes is None else f"{megabytes:,.0f} MB"


def _glued(notebook: dict[str, Any]) -> dict[str, str]:
    """Return the values that a notebook glued: name → text."""
    glued = {}
    for output in (o for cell in notebook["cells"] for o in cell.get("outputs", [])):
        mark = output.get("metadata", {}).get("scrapbook")
        if mark:
            text = "".join(output["data"].get(mark.get("mime_prefix", "") + "text/plain", ""))
            try:
                glued[mark["name"]] = str(ast.literal_eval(text))
            except (ValueError, SyntaxError):
                glued[mark["name"]] = text
    return glued


def _check_figure(cell: dict[str, Any], path: Path) -> None:
    """Check that a cell with a figure's metadata has drawn it, with a caption and an alt text."""
    mystnb = cell.get("metadata", {}).get("mystnb", {})
    if "figure" not in mystnb:
        return
    name = mystnb["figure"].get("name", "without a name")
    kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
    if not any(kind.startswith("image/") for kind in kinds):
        raise UserError(f"Figure {name} of {path} is empty: let its cell end with the figure.")
    if not mystnb["figure"].get("caption") or not mystnb.get("image", {}).get("alt"):
        raise UserError(
            f"Figure {name} of {path} lacks a caption or an alt text: give both in its cell's "
            "metadata, mystnb.figure.caption and mystnb.image.alt."
        )


def portable(value: Any) -> Any:
    """Remove the machine's folders from a setting's paths: `…/mine.yaml`."""
    if not isinstance(value, str) or "/" not in value:
        return value
    return ",".join(_portable_path(part) for part in value.split(","))


def _portable_path(text: str) -> str:
    path = Path(text.strip())
    if not path.is_absolute():
        return text
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else f"…/{path.name}"


def _cell(text: Any) -> str:
    return inline_code(text, in_table=True)


def _pairs(values: dict[str, Any], joint: str = " = ") -> str:
    return ", ".join(_cell(f"{k}{joint}{portable(v)}") for k, v in values.items() if v != "")


def _read_json(path: Path, stem: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing, and the book's contents list notebooks/{stem}.ipynb: run "
            "'make book', which executes every notebook before it builds."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and run 'make book' again."
        ) from error
