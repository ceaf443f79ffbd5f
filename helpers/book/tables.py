"""Tables for pages: text is escaped, and equal tables make equal HTML."""

import re
from collections.abc import Mapping
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
