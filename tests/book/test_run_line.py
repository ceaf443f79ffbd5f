"""The line that says with what a chapter was run."""

import html

from markdown_it import MarkdownIt

from helpers.book.run_line import MAX_VALUE, run_line
from helpers.book.settings import validated

HOSTILE = "*x* `a` <b>{{ y }}</b> [l](u) · \u202e$z$"


def line(stem: str, **values) -> str:
    settings = validated(stem, values).model_dump()
    return run_line(stem, settings, subject=settings["subject"], target=settings["target"])


def shown(text: str) -> str:
    """The line's HTML, entities resolved."""
    return html.unescape(MarkdownIt("commonmark").render(text))


def test_defaults_are_not_listed():
    assert shown(line("02_propagation")) == (
        "<p><em>Run with: smollm2-135m · France → Paris · profile default · seed 0</em></p>\n"
    )


def test_what_differs_from_the_defaults_is_listed_with_its_value():
    text = line("06_edit_mlps", n_facts=4, n_seeds=1, saes="", device="cuda", scales="1")
    assert text.endswith("seed 0 · `device = cuda` · `scales = 1` · `n_facts = 4`*")
    assert "`widths = none`" in line("11_organism", widths="")


def test_a_chapter_with_models_of_its_own_does_not_name_another():
    assert "organisms trained here" in line("11_organism")
    assert "smollm2" not in line("11_organism")


def test_a_long_value_is_cut():
    text = line("06_edit_mlps", saes="a" * 500)
    assert "…`" in text and len(text) < 100 + MAX_VALUE


def test_names_with_markup_are_shown_as_they_are():
    settings = validated("02_propagation", {"model": "m"}).model_dump()
    settings |= {"model": HOSTILE, "profile": HOSTILE, "relation": HOSTILE}
    page = MarkdownIt("commonmark", {"html": True}).render(
        run_line("02_propagation", settings, subject=HOSTILE, target=HOSTILE)
    )
    assert page.count("<em>") == 1 and page.count("<code>") == 1
    assert "<b>" not in page and "<a" not in page and "\u202e" not in page
    assert html.unescape(page).count("*x* `a` <b>{{ y }}</b> [l](u) · \\u202e$z$") == 5
