"""The page of benchmarks, made from the measurements in `benchmarks/results`."""

import json
from pathlib import Path
from typing import Any

from helpers.book.charts import InteractiveChart, chart_html
from helpers.io.safe_text import inline_code
from helpers.plots.interactive import under_attack

UNDER_ATTACK = "Interactive: which attack brings the fact back, of which method?"


def benchmark_tables(folder: Path) -> str:
    """Write the measurements of `make bench` in Markdown, with one section for each file.

    Args:
        folder: The folder of JSON files. Each holds `title`, `how` (the method of measurement, in
            words), `rows` (a list of mappings with the same keys, the columns) and `versions`.
    """
    sections = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        columns = list(result["rows"][0])
        lines = [f"| {' | '.join(columns)} |", "| :--- " + "| ---: " * (len(columns) - 1) + "|"]
        lines += [f"| {' | '.join(_number(row[c]) for c in columns)} |" for row in result["rows"]]
        used = ", ".join(inline_code(f"{k} {v}") for k, v in result["versions"].items())
        sections.append(
            f"## {result['title']}\n\n{result['how']}\n\n" + "\n".join(lines) + f"\n\nWith {used}."
        )
        if path.stem == "robustness":
            chart = InteractiveChart(under_attack(result["rows"]), summary=UNDER_ATTACK)
            sections.append(f"````{{raw}} html\n{chart_html(chart.spec)}\n````")
    return "\n\n".join(sections) or "There are no measurements yet: run `make bench`."


def _number(value: Any) -> str:
    """Format a number with three significant digits; keep text unchanged."""
    if not isinstance(value, float):
        return f"{value}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
