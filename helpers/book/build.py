"""Build the book of a run folder: stage pages and executed notebooks, build, check.

    python -m helpers.book.build runs/<name>

Jupyter Book builds from a staged tree: pages of `book/`, the run's executed notebooks at the path
of their sources (so that edit and launch links fit), the library's source for the API pages, and
MathJax, so that pages need no network. Execution is off and a warning fails the build. This module
imports no torch, so that it ends at once if nothing changed.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from helpers.book.benchmark_page import benchmark_tables
from helpers.book.charts import write_vega
from helpers.book.check import check
from helpers.book.methods_page import methods_page
from helpers.book.pages import Executed, page_words, status_table
from helpers.book.settings import ROOT
from helpers.book.sources import RESULTS
from helpers.errors import UserError
from helpers.io.safe_text import escape_markdown, with_arrows_kept

MARKS = {  # page → the comment whose place a generated part takes
    "book/status.md": "<!-- status -->",
    "book/benchmarks.md": "<!-- benchmarks -->",
    "book/methods.md": "<!-- methods -->",
}
MATHJAX = "sphinx-mathjax-offline"
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml/fonts/woff-v2/", "input/tex/extensions/")
QUICK_PROFILE = "smoke"
NOT_TO_BE_READ = (
    "This copy was made by the quick profile, to see that everything works. Its samples are too "
    "small: do not read its numbers."
)
TOOLS = (
    "jupyter-book",
    "sphinx",
    "myst-nb",
    "sphinx-book-theme",
    "sphinx-autoapi",
    "vl-convert-python",
    MATHJAX,
)


def stage(run_folder: str | Path, stage_folder: str | Path) -> Path:
    """Write the tree that Jupyter Book builds; the old content of `stage_folder` is replaced.

    Args:
        run_folder: A run with `notebooks/<stem>.ipynb` (executed by papermill) and
            `artifacts/<stem>/manifest.json` for every notebook in `book/_toc.yml`.
        stage_folder: The folder of the tree.

    Returns:
        The stage folder.

    Raises:
        UserError: A notebook of the table of contents is missing, failed, or damaged.
    """
    return _write(_staged_files(Path(run_folder)), Path(stage_folder))


def build(run_folder: str | Path) -> Path:
    """Build the book of a run into `<run>/book/_build/html` and return its `index.html`.

    Nothing is done if the staged files and the tools are those of the last finished build. A build
    that fails leaves the last book as it was.

    Raises:
        UserError: Staging failed; Jupyter Book warned or failed (the log lies in
            `<run>/logs/book.log`); a page is too heavy or loads something from the network.
    """
    run_folder = Path(run_folder)
    folder, log = run_folder / "book", run_folder / "logs" / "book.log"
    html, record = folder / "_build" / "html", folder / "_build" / "inputs.sha256"
    files = _staged_files(run_folder)
    fingerprint = _fingerprint(files)
    if (html / "index.html").exists() and record.exists() and record.read_text() == fingerprint:
        return html / "index.html"

    staged, scratch = _write(files, folder / "stage"), folder / "building"
    shutil.rmtree(scratch, ignore_errors=True)  # a fresh build: a cached page hides its warnings
    log.parent.mkdir(parents=True, exist_ok=True)
    command = "from jupyter_book.cli.main import main; main()"
    options = ["build", str(staged), "-n", "-W", "--keep-going", "--path-output", str(scratch)]
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-c", command, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"NO_COLOR": "1", "PYTHONUTF8": "1"},
        )
    if done.returncode:
        raise UserError(f"The book did not build: {_first_problem(log, staged)} The log is {log}.")
    for path in (scratch / "_build" / "html").rglob("*.map"):
        path.unlink()  # of the theme, for whoever debugs its scripts: a fourteenth of the book
    for path in (scratch / "_build" / "html" / "_sources").rglob("*.ipynb"):
        _drop_outputs(path)
    write_vega(scratch / "_build" / "html")
    if problems := check(scratch / "_build" / "html"):
        raise UserError(f"The book was built but cannot be published: {'; '.join(problems[:3])}.")

    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    shutil.rmtree(html, ignore_errors=True)
    os.replace(scratch / "_build" / "html", html)
    shutil.rmtree(scratch, ignore_errors=True)
    record.write_text(fingerprint)
    return html / "index.html"


def _drop_outputs(path: Path) -> None:
    """Empty the outputs of a notebook that readers download to run it: the page shows them."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")


def _staged_files(run_folder: Path) -> dict[str, bytes]:
    """Collect the files of the staged tree: name → content.

    Pictures that a chapter saved for pages of prose lie under `pictures/<stem>/`.
    """
    toc = (ROOT / "book" / "_toc.yml").read_text()
    stems = [Path(name).stem for name in _toc_files(yaml.safe_load(toc)) if "notebooks/" in name]
    pages = [Executed.read(run_folder, stem) for stem in stems]

    files = {"_toc.yml": toc.encode(), "_config.yml": _config(pages).encode()}
    for page in pages:
        files[f"notebooks/{page.stem}.ipynb"] = page.page().encode()
        for picture in sorted((run_folder / "artifacts" / page.stem).glob("*.svg")):
            files[f"pictures/{page.stem}/{picture.name}"] = picture.read_bytes()
    for path in _tree(ROOT / "book"):
        name = path.relative_to(ROOT / "book").as_posix()
        if name.startswith("_static/"):
            files[name] = path.read_bytes()
        elif name != "_toc.yml":
            files[f"book/{name}"] = path.read_bytes()
    tables = {
        "book/status.md": status_table(pages),
        "book/benchmarks.md": benchmark_tables(RESULTS),
        "book/methods.md": methods_page(RESULTS),
    }
    for name, mark in MARKS.items():
        files[name] = files[name].decode().replace(mark, tables[name]).encode()
    words = page_words(pages[0]) if pages else {}
    files = {name: _with_words(name, content, words) for name, content in files.items()}
    for path in _tree(ROOT / "helpers", suffix=".py"):
        files[path.relative_to(ROOT).as_posix()] = path.read_bytes()
    return files | _mathjax()


def _write(files: dict[str, bytes], stage_folder: Path) -> Path:
    if stage_folder.exists():
        shutil.rmtree(stage_folder)
    for name, content in files.items():
        path = stage_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return stage_folder


def _with_words(name: str, content: bytes, words: dict[str, str]) -> bytes:
    """Finish a page: put the run's words into prose, and keep arrows between names in their order.

    Words stand for `{{ subject }}`, ..., as text without markup. Other files stay as they are.
    """
    if not name.endswith((".md", ".ipynb")):
        return content
    page = content.decode()
    if name.startswith("book/"):
        for word, text in words.items():
            page = page.replace(f"{{{{ {word} }}}}", escape_markdown(text))
    return with_arrows_kept(page).encode()


def _config(pages: Sequence[Executed]) -> str:
    """Complete `_config.yml` by the addresses of the repository and of the book.

    A book of the quick profile says on each page that its numbers are not to be read.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "_config.yml").read_text())
    if any(page.manifest.get("profile") == QUICK_PROFILE for page in pages):
        config["sphinx"]["config"]["html_theme_options"]["announcement"] = NOT_TO_BE_READ
    if repository := _repository():
        branch = os.environ.get("BOOK_BRANCH") or "main"
        config["repository"] |= {"url": repository, "branch": branch}
        for button in ("repository", "edit_page", "issues"):
            config["html"][f"use_{button}_button"] = True
        config["launch_buttons"]["colab_url"] = "https://colab.research.google.com"
    if url := os.environ.get("BOOK_URL"):
        config["html"]["baseurl"] = url.rstrip("/") + "/"
        prefix = urlsplit(url).path.strip("/")
        config["sphinx"]["config"]["notfound_urls_prefix"] = f"/{prefix}/" if prefix else "/"
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _repository() -> str:
    """Return `$BOOK_REPOSITORY`, or the git remote `origin` if it is on GitHub, or empty text."""
    if address := os.environ.get("BOOK_REPOSITORY"):
        return address.removesuffix(".git").rstrip("/")
    git = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    try:
        origin = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
    match = re.fullmatch(r"(?:https://|ssh://git@|git@)github\.com[/:](.+?)(?:\.git)?/?", origin)
    return f"https://github.com/{match[1]}" if match else ""


def _mathjax() -> dict[str, bytes]:
    """Read the parts of MathJax that pages load from the installed package: name → content."""
    try:
        listed = importlib.metadata.files(MATHJAX) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"The package {MATHJAX} is not installed, so formulas would need the network: "
            "run 'make book', which installs the requirements."
        ) from error
    files = {}
    for entry in listed:
        name = entry.as_posix().partition("/static/mathjax/")[2]
        if name.startswith(MATHJAX_PARTS):
            files[f"extra/_static/mathjax/{name}"] = Path(entry.locate()).read_bytes()
    return files


def _toc_files(toc: Any) -> list[str]:
    """List all pages of a table of contents, in order."""
    if isinstance(toc, list):
        return [name for entry in toc for name in _toc_files(entry)]
    if not isinstance(toc, dict):
        return []
    files = [toc[key] for key in ("root", "file") if key in toc]
    return files + [name for value in toc.values() for name in _toc_files(value)]


def _tree(folder: Path, suffix: str = "") -> list[Path]:
    hidden = ("__pycache__", ".ipynb_checkpoints", "_build")
    files = (path for path in sorted(folder.rglob(f"*{suffix}")) if path.is_file())
    return [p for p in files if not any(part in hidden for part in p.relative_to(folder).parts)]


def _fingerprint(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    versions = {tool: importlib.metadata.version(tool) for tool in TOOLS}
    digest.update(json.dumps(versions, sort_keys=True).encode())
    return digest.hexdigest()


def _first_problem(log: Path, staged: Path) -> str:
    """Return the first warning or error of a build log, and the number of further ones."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    text = text.replace(f"{staged.resolve()}/", "").replace(f"{staged}/", "")
    problems = [line for line in text.splitlines() if re.search(r"\b(WARNING|ERROR)\b: ", line)]
    if not problems:
        problems = [line for line in text.splitlines() if line.strip()][-1:] or ["no output"]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0].strip().rstrip('.')}{more}."


def main(arguments: list[str]) -> int:
    """Build the book of the run folder that the command line names; print its `index.html`."""
    if len(arguments) != 1:
        sys.stderr.write("Give one run folder: python -m helpers.book.build runs/<name>\n")
        return 1
    try:
        sys.stdout.write(f"{build(arguments[0])}\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
