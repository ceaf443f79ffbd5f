"""Tables that a reader searches, filters, sorts and downloads: plain HTML and one script."""

from collections.abc import Sequence

import pandas as pd

from helpers.book.settings import ROOT
from helpers.io.safe_text import escape_html

# Pages have the script as a file. JupyterLab has no such file, so a table brings it along, and
# `helpers.book.pages` drops it.
SCRIPT = ROOT / "book" / "_static" / "sortable_tables.js"
IN_JUPYTER = f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"
CONTROLS = (
    '<div class="table-choice" hidden><label>search <input type="search"></label>{choice}'
    "<details><summary>columns</summary><fieldset><legend>columns that are shown</legend>"
    '</fieldset></details><button type="button">download as CSV</button>'
    '<span role="status"></span></div>'
)


def sortable(
    table: pd.DataFrame,
    *,
    numeric: Sequence[str],
    choice: str = "family",
    name: str = "leaderboard",
    n_first: int | None = None,
) -> str:
    """Write a table as HTML that a reader searches, filters, sorts and downloads.

    A search keeps the rows that hold each of its words. Headings become buttons, for mouse and
    keyboard. The downloaded file has all rows that match and the columns that are shown, and an
    interval as two columns of its own. The table loads nothing from elsewhere, and without scripts
    it is a plain table. A column that is the same in every row becomes a sentence above it, and an
    empty one is left out.

    Args:
        table: The table as text.
        numeric: Columns that are sorted by the first number of their cells, with an interval in
            brackets below it. Cells without a number stay last, and so do empty ones of the other
            columns.
        choice: A column; a list above the table shows the rows of one of its values.
        name: Name of the downloaded file, without `.csv`.
        n_first: Rows that are shown before a button shows the others; all by default.
    """
    table, sentence = _without_constants(table, keep=(table.columns[0], choice))
    kind = {column: ' class="number"' if column in numeric else "" for column in table}
    heads = "".join(f'<th scope="col"{kind[c]}>{escape_html(c)}</th>' for c in table)
    lines = "".join(
        f'<tr data-kind="{escape_html(row[choice])}">'
        + "".join(f"<td{kind[c]}>{_cell(v, is_number=bool(kind[c]))}</td>" for c, v in row.items())
        + "</tr>"
        for _, row in table.iterrows()
    )
    kinds = "".join(
        f"<option>{escape_html(k)}</option>" for k in ["all", *dict.fromkeys(table[choice])]
    )
    select = f"<label>{escape_html(choice)} <select>{kinds}</select></label>"
    limit = "" if n_first is None else f' data-first="{n_first}"'
    return (
        f'<div class="leaderboard" data-name="{escape_html(name)}"{limit}>{sentence}'
        f"{CONTROLS.format(choice=select)}"
        '<div class="table-scroll" style="overflow-x:auto">'
        f'<table class="dataframe"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        f"</div></div>{IN_JUPYTER}"
    )


def _without_constants(table: pd.DataFrame, *, keep: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """Take out the columns that are the same in every row; return the others, and a sentence."""
    if len(table) < 2:
        return table, ""
    constant = [c for c in table if c not in keep and table[c].nunique(dropna=False) == 1]
    values = [f"{c} {table[c].iloc[0]}" for c in constant if table[c].iloc[0]]
    sentence = f"<p>The same in every row: {escape_html(', '.join(values))}.</p>" if values else ""
    return table.drop(columns=constant), sentence


def _cell(text: str, *, is_number: bool) -> str:
    value, bracket, interval = escape_html(text).partition(" [")
    small = '<br><small style="white-space:nowrap">'
    return f"{value}{small}[{interval}</small>" if bracket and is_number else escape_html(text)
