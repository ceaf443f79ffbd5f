"""Tables to search and sort: whole and safe before any script runs."""

import pandas as pd

from helpers.book.sortable import IN_JUPYTER, sortable


def test_the_table_is_escaped_and_complete_without_scripts():
    row = {"method": ["<b>x</b>"], "family": ["surgery"], "value": ["0.5 [0.4, 0.6]"]}
    text = sortable(pd.DataFrame(row), numeric=["value"])
    assert "<b>x" not in text and "&lt;b&gt;x" in text
    assert "http" not in text
    body = text.split("<script>")[0]
    assert '<td class="number">0.5<br>' in body and "[0.4, 0.6]</small></td>" in body
    assert "<option>surgery</option>" in body


def test_what_is_the_same_in_every_row_is_said_once():
    rows = {
        "method": ["rome", "memit"],
        "family": ["surgery", "surgery"],
        "refused": ["<0>", "<0>"],
        "code": ["", ""],
        "facts": ["9", "2"],
    }
    text = sortable(pd.DataFrame(rows), numeric=["refused", "facts"])
    assert "The same in every row: refused &lt;0&gt;." in text
    heads = text.split("<tbody>")[0].split("<thead>")[1]
    assert all(f">{name}</th>" in heads for name in ("method", "family", "facts"))
    assert "refused" not in heads and "code" not in heads
    alone = sortable(pd.DataFrame(rows).head(1), numeric=[])
    assert "The same" not in alone and ">refused</th>" in alone


def test_brackets_in_words_are_no_interval():
    table = pd.DataFrame({"concept": ["a"], "text": ["see [1, 2]"]})
    assert "<td>see [1, 2]</td>" in sortable(table, numeric=[], choice="concept")


def test_a_table_in_jupyter_brings_its_script_and_only_one():
    table = pd.DataFrame({"family": ["</script><script>x"]})
    text = sortable(table, numeric=[])
    assert text.endswith(IN_JUPYTER)
    assert text.count("<script>") == text.count("</script>") == 1
