"""Tables for pages: text is escaped, and equal tables make equal HTML."""

from collections.abc import Mapping, Sequence
from numbers import Number

import pandas as pd
from pandas.io.formats.style import Styler

from helpers.io.hashing import content_hash
from helpers.io.safe_text import escape_html


def styled(
    table: pd.DataFrame,
    formats: str | Mapping[str, str] | None = None,
    *,
    precision: int | None = None,
    na_rep: str | None = None,
    index: bool = True,
) -> Styler:
    """Style a table for a page.

    Cells and headings may hold text of users, models and files: they are escaped, and MathJax
    skips them. The identifier by which pandas ties styles to a table is a hash of its content, so
    that two runs make the same page.

    Args:
        table: The table.
        formats: One format for all columns, or column → format, in pandas' syntax.
        precision: Decimals of floats without a format.
        na_rep: Text in place of a missing value.
        index: Show the index.
    """
    shown = table.map(_safe)
    for axis in ("index", "columns"):
        labels = getattr(shown.rename(_safe, axis=axis), axis)
        shown = shown.set_axis(labels.set_names([_safe(name) for name in labels.names]), axis=axis)
    style = Styler(shown, uuid=content_hash(shown.to_json(default_handler=str)), cell_ids=False)
    style = style.set_table_attributes('class="dataframe tex2jax_ignore mathjax_ignore"')
    style = style.format(formats, precision=precision, na_rep=na_rep)
    return style if index else style.hide()


def _safe(cell: object) -> object:
    """Return numbers and missing values unchanged, and everything else as escaped text."""
    missing = pd.api.types.is_scalar(cell) and pd.isna(cell)
    return cell if missing or isinstance(cell, Number) else escape_html(cell)


def sortable(table: pd.DataFrame, *, numeric: Sequence[str]) -> str:
    """Write a table as HTML that sorts by a click on a heading and filters by column `family`.

    It loads nothing from elsewhere, and without scripts it is a plain table.

    Args:
        table: The table as text. An interval in brackets is shown below its value.
        numeric: Columns that are sorted by the first number of their cells.
    """
    heads = "".join(
        f'<th data-number="{int(c in numeric)}" style="cursor:pointer">{escape_html(c)}</th>'
        for c in table
    )
    lines = "".join(
        f'<tr data-kind="{escape_html(str(row["family"]))}">'
        + "".join(f"<td>{_cell(str(v))}</td>" for v in row)
        + "</tr>"
        for _, row in table.iterrows()
    )
    kinds = "".join(
        f"<option>{escape_html(k)}</option>" for k in ["all", *dict.fromkeys(table["family"])]
    )
    label = f"<label>family <select>{kinds}</select></label>"
    return (
        f'<div class="leaderboard" style="overflow-x:auto">{label}<table><thead><tr>{heads}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div><script>{SCRIPT}</script>"
    )


def _cell(text: str) -> str:
    value, bracket, interval = escape_html(text).partition(" [")
    small = '<br><small style="white-space:nowrap">'
    return f"{value}{small}[{interval}</small>" if bracket else value


SCRIPT = """
document.querySelectorAll('.leaderboard').forEach(box => {
  const body = box.querySelector('tbody');
  const number = text => {
    const found = text.match(/-?[0-9.]+(e[-+]?[0-9]+)?/);
    return found ? +found[0] : 1e9;
  };
  box.querySelectorAll('th').forEach((head, i) => head.onclick = () => {
    const up = head.dataset.up = head.dataset.up === '1' ? '0' : '1';
    [...body.rows].sort((a, b) => {
      const x = a.cells[i].textContent, y = b.cells[i].textContent;
      const d = head.dataset.number === '1' ? number(x) - number(y) : x.localeCompare(y);
      return up === '1' ? d : -d;
    }).forEach(row => body.append(row));
  });
  box.querySelector('select').onchange = e => [...body.rows].forEach(row => {
    row.hidden = e.target.value !== 'all' && row.dataset.kind !== e.target.value;
  });
});
"""
