"""Tables for pages: text is escaped, and equal tables make equal HTML."""

import re
from collections.abc import Mapping, Sequence
from numbers import Number

import pandas as pd
from pandas.io.formats.style import Styler

from helpers.io.hashing import content_hash
from helpers.io.safe_text import escape_html

BLANK = re.compile(r'<th class=("blank[^"]*") *>&nbsp;</th>')  # pandas' corner of a table


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
    if index and shown.index.nlevels == shown.columns.nlevels == 1 and shown.columns.name is None:
        # pandas gives the name of an index a row of its own, whose other headings are empty
        shown = shown.rename_axis(index=None, columns=shown.index.name)
    style = _Table(shown, uuid=content_hash(shown.to_json(default_handler=str)), cell_ids=False)
    style.set_table_attributes('class="dataframe tex2jax_ignore mathjax_ignore"')
    numbers = [i for i, dtype in enumerate(shown.dtypes) if _is_number(dtype)]
    style.set_table_styles(
        [{"selector": f".col{i}", "props": "text-align: right;"} for i in numbers]
    )
    style.format(formats, precision=precision, na_rep=na_rep)
    return style if index else style.hide()


class _Table(Styler):
    """A styled table whose empty corner is a cell: a heading without words names nothing."""

    def _repr_html_(self) -> str | None:
        page = super()._repr_html_()
        return page and BLANK.sub(r"<td class=\1></td>", page)


def _is_number(dtype: object) -> bool:
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def _safe(cell: object) -> object:
    """Return numbers and missing values unchanged, and everything else as escaped text."""
    missing = pd.api.types.is_scalar(cell) and pd.isna(cell)
    return cell if missing or isinstance(cell, Number) else escape_html(cell)


def sortable(table: pd.DataFrame, *, numeric: Sequence[str]) -> str:
    """Write a table as HTML that sorts by its headings and filters by column `family`.

    Headings become buttons, for mouse and keyboard. The table loads nothing from elsewhere, and
    without scripts it is a plain table.

    Args:
        table: The table as text. An interval in brackets is shown below its value.
        numeric: Columns that are sorted by the first number of their cells; cells without a number
            stay last.
    """
    kind = {column: ' class="number"' if column in numeric else "" for column in table}
    heads = "".join(f'<th scope="col"{kind[c]}>{escape_html(c)}</th>' for c in table)
    lines = "".join(
        f'<tr data-kind="{escape_html(str(row["family"]))}">'
        + "".join(f"<td{kind[c]}>{_cell(str(v))}</td>" for c, v in row.items())
        + "</tr>"
        for _, row in table.iterrows()
    )
    kinds = "".join(
        f"<option>{escape_html(k)}</option>" for k in ["all", *dict.fromkeys(table["family"])]
    )
    choice = f'<label>family <select>{kinds}</select></label> <span role="status"></span>'
    return (
        f'<div class="leaderboard"><p class="table-choice" hidden>{choice}</p>'
        '<div class="table-scroll" style="overflow-x:auto">'
        f'<table class="dataframe"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        f"</div></div><script>{SCRIPT}</script>"
    )


def _cell(text: str) -> str:
    value, bracket, interval = escape_html(text).partition(" [")
    small = '<br><small style="white-space:nowrap">'
    return f"{value}{small}[{interval}</small>" if bracket else value


SCRIPT = """
document.querySelectorAll('.leaderboard:not([data-ready])').forEach(box => {
  box.dataset.ready = '1';
  const body = box.querySelector('tbody'), heads = [...box.querySelectorAll('th')];
  const number = text => {
    const found = text.match(/[-−]?[0-9.]+(e[-+]?[0-9]+)?/);
    return found ? +found[0].replace('−', '-') : NaN;
  };
  const order = (i, sign) => (a, b) => {
    const [x, y] = [a, b].map(row => row.cells[i].textContent);
    if (!heads[i].classList.contains('number')) return sign * x.localeCompare(y);
    const [m, n] = [number(x), number(y)];
    return isNaN(m) || isNaN(n) ? isNaN(m) - isNaN(n) : sign * (m - n);
  };
  const marks = {none: '↕', ascending: '▲', descending: '▼'};
  const mark = (head, state) => {
    head.setAttribute('aria-sort', state);
    head.querySelector('[aria-hidden]').textContent = `\\u00a0${marks[state]}`;
  };
  heads.forEach((head, i) => {
    const button = document.createElement('button'), arrow = document.createElement('span');
    button.type = 'button';
    button.style = 'font:inherit;color:inherit;background:none;border:0;padding:0;' +
      'text-align:inherit;cursor:pointer';
    arrow.setAttribute('aria-hidden', 'true');
    button.append(...head.childNodes, arrow);
    head.append(button);
    mark(head, 'none');
    button.onclick = () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(h => mark(h, h !== head ? 'none' : up ? 'ascending' : 'descending'));
      body.append(...[...body.rows].sort(order(i, up ? 1 : -1)));
    };
  });
  const choice = box.querySelector('select'), rows = [...body.rows];
  const filter = () => {
    rows.forEach(row => row.hidden = choice.value !== 'all' && row.dataset.kind !== choice.value);
    const n = rows.filter(row => !row.hidden).length;
    box.querySelector('[role=status]').textContent = `${n} of ${rows.length} rows`;
  };
  choice.onchange = filter;
  filter();
  box.querySelector('.table-choice').hidden = false;
});
"""
