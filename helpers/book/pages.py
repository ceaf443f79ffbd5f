"""From an executed notebook and its manifest to a page of the book.

A page is the notebook as papermill left it, with the injected parameters folded and its provenance
appended. The status page sums up all of them. Nothing here runs a notebook or imports torch.
"""

import ast
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.book.settings import ROOT
from helpers.errors import UserError
from helpers.io.safe_text import escape_markdown, inline_code, visible

GLUE = "application/papermill.record/"  # how myst-nb marks what a page may quote
FOLDED = "hide-cell"  # myst-nb shows such a cell behind a button


@dataclass(frozen=True)
class Executed:
    """One executed notebook of a run.

    Attributes:
        stem: The notebook's name without `.ipynb`.
        notebook: Its content (nbformat 4, as plain data).
        manifest: What `helpers.io.run.Run.finish` recorded.
    """

    stem: str
    notebook: dict[str, Any]
    manifest: dict[str, Any]

    @classmethod
    def read(cls, run_folder: Path, stem: str) -> "Executed":
        """Read `notebooks/<stem>.ipynb` and `artifacts/<stem>/manifest.json` of a run.

        Raises:
            UserError: One of them is missing or damaged, the notebook failed or was not run, or a
                figure is empty or has no caption or alt text.
        """
        path = run_folder / "notebooks" / f"{stem}.ipynb"
        notebook = _read_json(path, stem)
        manifest = _read_json(run_folder / "artifacts" / stem / "manifest.json", stem)
        papermill = notebook.get("metadata", {}).get("papermill")
        if papermill is not None:
            papermill |= manifest.get(
                "papermill", {}
            )  # the times, which helpers.book.steps moves there
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
        return self.notebook["metadata"]["papermill"]

    @property
    def parameters(self) -> dict[str, Any]:
        """What papermill put over the notebook's defaults."""
        return self.papermill.get("parameters") or {}

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest.get("settings", {})

    def page(self) -> str:
        """The notebook as JSON, injected parameters folded, provenance as the last section."""
        cells = [self._folded(cell) for cell in self.notebook["cells"]]
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
        metadata.pop("papermill", None)  # the provenance says what of it is meant for readers
        page = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        return json.dumps(page, indent=1, ensure_ascii=False)

    def _folded(self, cell: dict[str, Any]) -> dict[str, Any]:
        """The cell as it is; the injected parameters folded, without paths of the machine."""
        tags = cell.get("metadata", {}).get("tags", [])
        if "injected-parameters" not in tags:
            return cell
        lines = [f"{name} = {portable(v)!r}" for name, v in self.parameters.items()]
        tags = list(dict.fromkeys([*tags, FOLDED]))
        source = "\n".join(["# Parameters", *lines])
        return cell | {"metadata": cell["metadata"] | {"tags": tags}, "source": source}

    def _times(self) -> dict[str, Any]:
        """A hidden cell by which pages quote what the clock decided (`helpers.book.chapter.glue_times`)."""
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
        """Markdown of the last section: what made this page, in a folded box."""
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
            f"{duration_in_words(self.papermill['duration'])}, commit {inline_code(manifest.get('commit'))}"
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
        """The papermill command that runs this notebook with the same parameters."""
        options = [
            f"-p {name} {shlex.quote(visible(portable(value)))}"
            for name, value in self.parameters.items()
            if name != "run" and value != ""
        ]
        start = f".venv/bin/papermill notebooks/{self.stem}.ipynb out.ipynb"
        return " \\\n  ".join([start, *options])


def status_table(pages: list[Executed]) -> str:
    """Markdown table of all notebooks: result, time, memory, profile, commit; then the sum."""
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


def benchmark_tables(folder: Path) -> str:
    """Markdown of the measurements that `make bench` left in `folder`, one section a file.

    A file holds `title`, `how` (what was measured, in words), `rows` (a list of mappings with the
    same keys, the columns) and `versions`.
    """
    sections = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        columns = list(result["rows"][0])
        lines = [f"| {' | '.join(columns)} |", "| :--- " + "| ---: " * (len(columns) - 1) + "|"]
        lines += [f"| {' | '.join(_number(row[c]) for c in columns)} |" for row in result["rows"]]
        made = _pairs(result["versions"], joint=" ")
        sections.append(
            f"## {result['title']}\n\n{result['how']}\n\n" + "\n".join(lines) + f"\n\nWith {made}."
        )
    return "\n\n".join(sections) or "There are no measurements yet: run `make bench`."


def _number(value: Any) -> str:
    """A figure with three digits that count; words as they are."""
    if not isinstance(value, float):
        return f"{value}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def page_words(page: Executed) -> dict[str, str]:
    """The words that prose pages take from a run, as `{{ subject }}`, `{{ target }}`, ...

    Subject and target are those that the notebook glued, for a pair file overrides the settings.
    """
    names = ("subject", "target", "model")
    words = {name: str(portable(page.settings.get(name, ""))) for name in names}
    words |= {name: text for name, text in _glued(page.notebook).items() if name in words}
    return words | {"profile": str(page.manifest.get("profile", ""))}


def duration_in_words(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(3.2), duration(41.7), duration(125)
    ('3.2 s', '42 s', '2 min 5 s')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def memory(megabytes: float | None) -> str:
    """Mebibytes with a thousands separator, or a dash when they were not recorded."""
    return "–" if megabytes is None else f"{megabytes:,.0f} MB"


def _glued(notebook: dict[str, Any]) -> dict[str, str]:
    """Values that a notebook glued, as text."""
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
    """A cell that announces a figure has drawn one, with a caption and a text for who can't see."""
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
    """A setting without the folders of the machine that made the page: `…/mine.yaml`."""
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
