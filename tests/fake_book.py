"""A run whose notebooks nobody executed, as papermill would leave them, to build books from."""

import base64
import functools
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.book import build as book
from helpers.book.charts import InteractiveChart
from helpers.book.sortable import sortable
from helpers.book.tables import styled
from helpers.plots.dashboards import Context, Dashboard

ROOT = Path(__file__).parents[1]


def copy_sources(root: Path) -> Path:
    """Copy what a book is built from, so that nobody edits it meanwhile.

    Of the library, whose pages take most of the time, it copies one module.
    """
    for name in ("book", "benchmarks"):
        shutil.copytree(ROOT / name, root / name)
    (root / "helpers").mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "helpers" / name, root / "helpers")
    shutil.copy(ROOT / "_config.yml", root)
    return root


def title_of(path: Path) -> str:
    """The first heading of a notebook."""
    text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1].strip()


TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
TITLES = {  # of the chapters, by the stems of their notebooks
    Path(name).name: title_of(ROOT / f"{name}.ipynb")
    for name in book._toc_files(TOC)
    if name.startswith("notebooks/")
}
GLUED = {  # what tests look for on the prose pages
    "pair_mean": 0.7654,
    "pair_interval": "95 % interval 0.61 to 0.90",
    "n_capitals": 211,
}


def quoted(stem: str) -> dict[str, float]:
    """The numbers of a notebook that the prose pages quote."""
    pages = "".join(path.read_text() for path in (ROOT / "book").glob("*.md"))
    keys = re.findall(rf"`/notebooks/{stem}\.ipynb::(\w+)", pages)
    return {key: GLUED.get(key, 0.5) for key in keys}


@functools.cache
def picture() -> str:
    """A small real figure, as base64 PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 10, 20, 30], [0.1, 0.2, 0.7, 0.8], label="patched")
    axes.axhline(0.05, color="grey", linestyle="--", label="baseline")
    axes.set(xlabel="layer", ylabel="share of the answer moved")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return base64.b64encode(buffer.getvalue()).decode()


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="260" height="180">'
    '<rect width="260" height="180" fill="white"/></svg>'
)
RANKING = pd.DataFrame(
    [
        ["rome", "surgery", "0.9 [0.8, 1.0]", "changes weights"],
        ["npo", "training", "–", "changes weights"],
        ["memit", "surgery", "0.12 [0.1, 0.2]", "changes weights"],
        ["in_context", "inference", "10", "intervenes"],
    ],
    columns=["method", "family", "seconds", "form"],
)


def wide_table() -> str:
    """A table with more columns than any page has room for, its rows named."""
    columns = {f"metric with a name, {i}": [0.5, 0.25 * i] for i in range(30)}
    index = pd.Index(["rome", "memit"], name="method")
    return styled(pd.DataFrame(columns, index=index), precision=2)._repr_html_()


def dashboard() -> str:
    """The dashboard of a latent, with its strongest and its faintest shade."""
    context = Context((" of", " Japan", " is"), (0.0, 1.0, 0.01), 1)
    return Dashboard(
        title="latent 7",
        contexts=(context,),
        edges=np.array([0.0, 0.5, 1.0]),
        counts=np.ones(2),
        active=0.01,
        n_tokens=9,
        promotes=(" Tokyo",),
        suppresses=(" Paris",),
    ).html()


LATENTS = pd.DataFrame(
    [[str(i), f"Land {i % 20}", f"0.{i:02d}", f"… of «Land {i % 20}» is …\nx"] for i in range(30)],
    columns=["latent", "concept", "F1", "strongest on"],
)


@functools.cache
def charts() -> dict[str, InteractiveChart]:
    """Interactive charts, by the stems of the chapters that show them."""
    from helpers.plots import interactive  # takes seconds, which not every test needs

    board = RANKING.assign(
        **{"facts": 6, "front": True, "attacks find": "absent 6", "finding": "absent"},
        **{"forgetting": [0.9, 0.5, 0.4, 0.1], "retention": [0.9, 0.2, 0.6, 0.3]},
        **{"forgetting low": 0.1, "forgetting high": 1.0},
        **{"retention low": 0.2, "retention high": 1.0},
    )
    keys = [(s, p, i) for s in ("mlp", "residual") for p in ("subject", "last") for i in range(9)]
    facts = ["Peru", "Japan", "Chad"]
    rows = [(*key, name, 0.1 * n) for n, name in enumerate(facts) for key in keys]
    effects = pd.DataFrame(
        rows, columns=["site", "position", "layer", "subject", "patching_effect"]
    )
    by_fact = pd.DataFrame(
        {
            "method": ["rome", "npo"] * 2,
            "subject": ["Peru", "Peru", "Chad", "Chad"],
            "by name": [0.01, 0.2, 0.3, 0.4],
            "by stitching": [0.1, 0.5, 0.3, float("nan")],
            "before": [0.6, 0.6, 0.7, 0.7],
            "state": ["absent", "hidden", "undecided", ""],
        }
    )
    on_a_fact = interactive.methods_on_a_fact(by_fact, order=["npo", "rome"])
    return {
        "02_propagation": InteractiveChart(interactive.each_fact(effects), summary="Each fact"),
        "06_edit_mlps": InteractiveChart(on_a_fact, summary="Each method"),
        "10_leaderboard": InteractiveChart(interactive.tradeoff(board), summary="Each method"),
    }


def html_cell(stem: str) -> dict:
    """What a chapter shows as HTML: a table to sort, latents, or a wide table."""
    if stem == "05_concept_features":
        page = sortable(LATENTS, numeric=["latent", "F1"], choice="concept", n_first=10)
        source = "HTML(sortable(latents))"
    elif stem == "10_leaderboard":
        page, source = sortable(RANKING, numeric=["seconds"]), "HTML(sortable(board))"
    elif stem == "04_sparse_autoencoders":
        page, source = dashboard(), "dashboards(lm, sae, shards, [7])"
    else:
        page, source = wide_table(), "styled(table, precision=2)  # one row a method"
    return code(source, [new_output("display_data", data={"text/html": page})])


def glue(key: str, value: float | str, *, hidden: bool = False) -> dict:
    """What `myst_nb.glue(key, value, display=not hidden)` leaves in a notebook."""
    prefix = "application/papermill.record/" if hidden else ""
    return new_output(
        "display_data",
        data={f"{prefix}text/plain": repr(value)},
        metadata={"scrapbook": {"mime_prefix": prefix, "name": key}},
    )


def code(source: str, outputs: list | None = None, count: int = 1, **metadata) -> dict:
    return new_code_cell(source, outputs=outputs or [], execution_count=count, metadata=metadata)


def fake_notebook(stem: str) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it, in the form of the book's chapters."""
    name = "fig-" + stem[:2]
    figure = {"mystnb": {"figure": {"name": name, "caption": "The effect, layer by layer."}}}
    figure["mystnb"]["image"] = {"alt": "A line that rises with the layer."}
    cells = [
        new_markdown_cell(
            f"# {TITLES[stem]}\n\n**What does the model know?** See {{numref}}`{name}`."
        ),
        code('subject: str = "France"  # what the fact is about', tags=["parameters"]),
        code('# Parameters\nsubject = "Japan"\ntarget = "Tokyo"', tags=["injected-parameters"]),
        code(
            f'from helpers.book.chapter import Chapter\n\nchapter = Chapter("{stem}", globals())',
            [glue(*fact, hidden=True) for fact in (("subject", "Japan"), ("target", "Tokyo"))],
            tags=["remove-cell"],
        ),
        new_markdown_cell(
            "## A prediction\n\nThe answer is a sum, $z = W_U\\,\\sum_l m_l$"
            " {cite:p}`geva2021keyvalue`, read at the {term}`residual stream`:\n\n"
            "$$\n\\mathrm{MLP}(x) = \\sum_i \\sigma(k_i^\\top x)\\, v_i\n$$"
        ),
        code(
            "effect = patch(model, pair)\neffect.mean()  # (layers,)",
            [
                new_output("stream", name="stderr", text="100%|#####| progress bar"),
                new_output("execute_result", data={"text/plain": "0.42"}, execution_count=3),
            ],
            count=3,
        ),
        code(
            "plots.effect(effect)",
            [new_output("display_data", data={"image/png": picture(), "text/plain": "<Figure>"})],
            tags=["hide-input"],
            **figure,
        ),
        *[
            code("chart", [new_output("display_data", data=chart._repr_mimebundle_())])
            for name, chart in charts().items()
            if name == stem
        ],
        html_cell(stem),
        new_markdown_cell(
            "## Exercises\n\n```{exercise}\n:label: ex-"
            + stem[:2]
            + "\nTry another country in {doc}`/notebooks/00_model_and_facts`.\n```\n\n"
            "```{solution} ex-" + stem[:2] + "\n:class: dropdown\nGive `-p subject Japan`.\n```"
        ),
    ]
    if numbers := quoted(stem):
        outputs = [glue(*item, hidden=True) for item in numbers.items()]
        cells.append(code("glue(...)", outputs, tags=["remove-cell"]))
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "version": "3.11"},
        "papermill": {
            "duration": 41.7,
            "exception": None,
            "start_time": "2026-11-24T10:00:00",
            "end_time": "2026-11-24T10:00:41.700000",
            "parameters": {"subject": "Japan", "target": "Tokyo", "run": "runs/x"},
        },
    }
    return new_notebook(cells=cells, metadata=metadata)


def pictures(stem: str) -> list[str]:
    """The pictures of a chapter that the prose pages show."""
    pages = "".join(path.read_text() for path in (ROOT / "book").glob("*.md"))
    return re.findall(rf"/pictures/{stem}/(\w+\.svg)", pages)


def fake_run(folder: Path) -> Path:
    """A run folder with the executed notebooks of the contents, manifests and pictures."""
    (folder / "notebooks").mkdir(parents=True)
    for stem in TITLES:
        nbformat.write(fake_notebook(stem), folder / "notebooks" / f"{stem}.ipynb")
        manifest = {
            "step": stem,
            "settings": {
                "model": "smollm2-135m",
                "subject": "Japan",
                "target": "Tokyo",
                "relation": "capital",
                "pair_file": "",
                "seed": 0,
            },
            "seeds": [0],
            "profile": "smoke",
            "model_hash": "0123456789abcdef",
            "inputs": {},
            "outputs": {"known.parquet": "fedcba9876543210"},
            "commit": "abcdef012345",
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "started": "2026-11-24T10:00:00+00:00",
            "seconds": 40.1,
            "peak_memory_mb": 1234,
        }
        path = folder / "artifacts" / stem / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(manifest))
        for name in pictures(stem):
            path.with_name(name).write_text(SVG)
    return folder
