"""Interactive charts: in JupyterLab as they are, on a page in a folded box that a script fills.

A notebook holds a chart as Vega-Lite alone, which JupyterLab draws. For a page it becomes HTML with
the specification as data. `book/_static/interactive_charts.js` draws it when a reader opens the
box, with Vega from the built book. Without scripts a page shows nothing of it, so each chart goes
with a static figure or a table.
"""

import json
from pathlib import Path
from typing import Any

import vl_convert

from helpers.io.safe_text import escape_html

VEGA_LITE = "application/vnd.vegalite.v5+json"  # the newest type that JupyterLab 4 draws
BUNDLE = "_static/vega/bundle.js"  # in the built book


class InteractiveChart:
    """A chart that shows itself in JupyterLab, and that `Executed.page` puts into a folded box.

    Attributes:
        spec: The Vega-Lite specification; its `usermeta` holds the summary.
    """

    def __init__(self, chart: Any, *, summary: str):
        """Take an Altair chart.

        Args:
            chart: From `helpers.plots.interactive`.
            summary: The line that opens the box: the question that the chart answers, and how.
        """
        self.spec: dict[str, Any] = chart.to_dict() | {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "usermeta": {"summary": summary},
        }

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Return what Jupyter shows: the chart, or its description."""
        return {VEGA_LITE: self.spec, "text/plain": self.spec["description"]}


def chart_html(spec: dict[str, Any]) -> str:
    """Write a chart's folded box; its specification is data that no browser runs.

    Where points can be chosen, the box has room for the list of those that are.
    """
    chart = {key: value for key, value in spec.items() if key not in ("$schema", "usermeta")}
    data = json.dumps(chart, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    selections = [param["select"] for param in chart.get("params", []) if "bind" not in param]
    listed = '<output role="status"></output>' if selections else ""  # of the points in a region
    return (
        '<details class="interactive-chart tex2jax_ignore mathjax_ignore" hidden>'
        f"<summary>{escape_html(spec['usermeta']['summary'])}</summary>"
        f'<div class="interactive-plot"></div>{listed}'
        f'<script type="application/json">{data}</script></details>'
    )


def write_vega(html_folder: str | Path) -> None:
    """Write Vega, Vega-Lite and Vega-Embed into a built book, as one script of 0.9 MB."""
    path = Path(html_folder) / BUNDLE
    path.parent.mkdir(parents=True, exist_ok=True)
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # inside a function: the bundle's own names are short, and stay away from the page's
    path.write_text(f"(() => {{{bundle}}})();\n", encoding="utf-8")
