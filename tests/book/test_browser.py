"""The built book in a real browser: by mouse, by keyboard, on a phone, in the dark."""

import re
from pathlib import Path

import pandas as pd
import pytest
from fake_book import RANKING

from helpers.book.look import DESK, PHONE, SETTLED

pytestmark = pytest.mark.slow

LEADERBOARD, CHAPTER = "notebooks/10_leaderboard.html", "notebooks/01_keys_and_values.html"
FACTS, LATENTS = "notebooks/02_propagation.html", "notebooks/05_concept_features.html"
ON_A_FACT = "notebooks/06_edit_mlps.html"
KINDS = {  # one page a kind: axe takes seconds on each
    "landing page": "book/intro.html",
    "prose and code": "book/how_to_rerun.html",
    "Markdown tables": "book/status.html",
    "chapter": CHAPTER,
    "chart of facts": FACTS,
    "methods on a fact": ON_A_FACT,
    "table of latents": LATENTS,
    "benchmarks": "book/benchmarks.html",
    "latents": "notebooks/04_sparse_autoencoders.html",
    "leaderboard": LEADERBOARD,
    "library": "api/helpers/errors/index.html",
    "references": "book/references.html",
    "search": "search.html",
}
GRAVE = ("serious", "critical")


def pages_of(html: Path) -> list[str]:
    """All pages that a reader opens.

    Left out are 404.html, which a server shows for any address, so that it loads from the site's
    root, and the index, which only leads to the landing page.
    """
    found = (p.relative_to(html) for p in html.rglob("*.html") if "_static" not in p.parts)
    return sorted({str(path) for path in found} - {"404.html", "index.html"})


@pytest.fixture
def open_page(browser, built):
    """Open a page of the book: `open_page(name, screen, mode)`; all are closed at the end."""
    contexts = []

    def opened(name: str, screen: dict = DESK, mode: str = "light"):
        contexts.append(browser.new_context(viewport=screen, color_scheme=mode))
        page = contexts[-1].new_page()
        page.goto((built / name).as_uri())
        page.evaluate(SETTLED)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_every_page_runs_without_error_needs_no_network_and_fits(browser, built, screen):
    problems = []
    with browser.new_context(viewport=screen) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
        page.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:")) or problems.append(f"asks for {r.url}"),
        )
        page.on("requestfailed", lambda r: problems.append(f"{page.url} lacks {r.url}"))
        for name in pages_of(built):
            page.goto((built / name).as_uri())
            page.evaluate(SETTLED)
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > screen["width"]:
                problems.append(f"{name} is {width} px wide")
    assert problems == []


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_axe_finds_no_grave_violation(open_page, name):
    sync_axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page, violations = open_page(name), []
    for box in page.locator(".interactive-chart").all():
        draw(box)
    for columns in page.locator(".table-choice summary").all():
        columns.click()
    for mode, screen, rules in (
        ("light", DESK, {}),
        ("dark", DESK, {}),
        ("dark", PHONE, {"runOnly": ["scrollable-region-focusable"]}),
    ):
        page.emulate_media(color_scheme=mode)
        page.set_viewport_size(screen)
        page.wait_for_timeout(400)  # the theme waits so long before it looks for what scrolls
        assert page.evaluate("document.documentElement.dataset.theme") == mode
        found = sync_axe.Axe().run(page, options={"preload": False, **rules})
        violations += [
            f"{mode}, {v['id']}: {node['html'][:200]} {node['failureSummary'][:200]}"
            for v in found.response["violations"]
            if v["impact"] in GRAVE
            for node in v["nodes"]
        ]
    assert violations == []


def draw(box) -> None:
    """Open the box of an interactive chart, and wait until it is drawn."""
    box.locator("summary").click()
    box.locator("svg .mark-symbol path").first.wait_for()


def by_mouse(page, control) -> None:
    control.click()


def by_keyboard(page, control) -> None:
    control.focus()
    assert control.evaluate("e => e === document.activeElement")
    page.keyboard.press("Enter")


def column(page, i: int = 0) -> list[str]:
    """The cells of a column of the leaderboard that are shown."""
    rows = page.locator(f".leaderboard tbody tr:not([hidden]) td:nth-child({i + 1})")
    return [text.split("\n")[0] for text in rows.all_inner_texts()]


@pytest.mark.parametrize("press", [by_mouse, by_keyboard])
def test_headings_sort_the_leaderboard_and_say_so(open_page, press):
    page = open_page(LEADERBOARD)
    seconds = page.get_by_role("columnheader", name="seconds")
    assert seconds.get_attribute("aria-sort") == "none"
    press(page, seconds.get_by_role("button"))
    assert seconds.get_attribute("aria-sort") == "ascending"
    assert column(page, 2) == ["0.12", "0.9", "10", "–"]  # as numbers, what is missing last
    press(page, seconds.get_by_role("button"))
    assert seconds.get_attribute("aria-sort") == "descending"
    assert column(page, 2) == ["10", "0.9", "0.12", "–"]
    method = page.get_by_role("columnheader", name="method")
    press(page, method.get_by_role("button"))
    assert column(page) == sorted(RANKING["method"])
    assert seconds.get_attribute("aria-sort") == "none"


def test_the_tabulator_key_goes_from_heading_to_heading(open_page):
    page = open_page(LEADERBOARD)
    page.get_by_role("button", name="download as CSV").focus()
    reached = []
    for _ in RANKING:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent").split()[0].rstrip("↕"))
    assert reached == list(RANKING)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_the_leaderboard_shows_one_family(open_page, by):
    page = open_page(LEADERBOARD)
    family = page.get_by_role("combobox", name="family")
    assert column(page) == list(RANKING["method"])
    if by == "mouse":
        family.select_option("surgery")
    else:
        family.focus()
        page.keyboard.type("surgery")
    assert column(page) == ["rome", "memit"]
    assert page.get_by_role("status").filter(has_text="2 of 4 rows").count() == 1
    family.select_option("all")
    assert len(column(page)) == len(RANKING)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_search_keeps_the_rows_with_each_of_its_words(open_page, by):
    page = open_page(LEADERBOARD)
    search = page.get_by_role("searchbox", name="search", exact=True)
    if by == "mouse":
        search.fill("surgery ME")
    else:
        search.focus()
        page.keyboard.type("surgery ME")
    assert column(page) == ["rome", "memit"]
    search.fill("surgery memit")
    assert column(page) == ["memit"]
    page.get_by_role("columnheader", name="method").get_by_role("button").click()
    assert column(page) == ["memit"]  # a sort keeps the search
    search.fill("nothing like it")
    assert column(page) == []
    assert page.get_by_role("status").filter(has_text="0 of 4 rows").count() == 1


@pytest.mark.parametrize("press", [by_mouse, by_keyboard])
def test_columns_can_be_left_out_but_not_the_names_of_the_rows(open_page, press):
    page = open_page(LEADERBOARD)
    press(page, page.locator(".table-choice summary"))
    boxes = page.get_by_role("group", name="columns that are shown")
    assert [text.strip() for text in boxes.locator("label").all_inner_texts()] == list(RANKING)[1:]
    seconds = boxes.get_by_label("seconds")
    seconds.focus()
    page.keyboard.press("Space")
    assert page.get_by_role("columnheader", name="seconds").count() == 0
    assert not page.locator(".leaderboard tbody td:nth-child(3)").first.is_visible()
    page.keyboard.press("Space")
    assert page.get_by_role("columnheader", name="seconds").is_visible()


@pytest.mark.parametrize("press", [by_mouse, by_keyboard])
def test_the_download_has_what_is_shown_with_intervals_as_columns(open_page, press):
    page = open_page(LEADERBOARD)
    page.get_by_role("columnheader", name="seconds").get_by_role("button").click()
    page.get_by_role("combobox", name="family").select_option("surgery")
    page.locator(".table-choice summary").click()
    page.get_by_label("form", exact=True).uncheck()
    with page.expect_download() as download:
        press(page, page.get_by_role("button", name="download as CSV"))
    assert download.value.suggested_filename == "leaderboard.csv"
    table = pd.read_csv(download.value.path())
    assert list(table) == ["method", "family", "seconds", "seconds low", "seconds high"]
    assert table.to_numpy().tolist() == [
        ["memit", "surgery", 0.12, 0.1, 0.2],
        ["rome", "surgery", 0.9, 0.8, 1.0],
    ]


def test_a_long_table_shows_its_first_rows_and_then_all(open_page):
    page = open_page(LATENTS)
    assert len(column(page)) == 10
    with page.expect_download() as download:
        page.get_by_role("button", name="download as CSV").click()
    assert len(pd.read_csv(download.value.path())) == 30
    more = page.get_by_role("button", name="Show all 30 rows")
    by_keyboard(page, more)
    assert len(column(page)) == 30 and not more.is_visible()


def test_a_word_finds_the_latents_whose_contexts_hold_it(open_page):
    page = open_page(LATENTS)
    page.get_by_role("searchbox", name="search", exact=True).fill("«land 12»")
    assert column(page) == ["12"]
    page.get_by_role("searchbox", name="search", exact=True).fill("")
    page.get_by_role("combobox", name="concept").select_option("Land 19")
    assert column(page) == ["19"]


def test_vega_is_loaded_when_a_chart_is_opened_and_not_before(open_page):
    page = open_page(LEADERBOARD)
    assert page.evaluate("typeof vegaEmbed") == "undefined"
    summary = page.locator(".interactive-chart > summary")
    summary.focus()
    page.keyboard.press("Enter")
    page.locator(".interactive-plot svg .mark-symbol path").first.wait_for()
    plot = page.locator(".interactive-plot")
    assert plot.get_attribute("role") == "graphics-document"
    assert "4 methods" in plot.get_attribute("aria-label")


def points(page) -> list[str]:
    """The points of the chart of methods, in words."""
    marks = page.locator(".interactive-plot svg path[aria-roledescription=point]").all()
    return [
        m.get_attribute("aria-label") for m in marks if "family" in m.get_attribute("aria-label")
    ]


def test_a_chart_shows_numbers_on_hover_switches_families_and_picks_a_method(open_page):
    page = open_page(LEADERBOARD)
    draw(page.locator(".interactive-chart"))
    assert len(points(page)) == 4
    page.locator(".interactive-plot path[aria-label*='family: training']").hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "npo" in tooltip.inner_text() and "0.500 [0.100, 1.000]" in tooltip.inner_text()

    surgery = page.get_by_role("checkbox", name="surgery")
    surgery.focus()
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('[aria-label*=\"family: surgery\"]')")
    assert len(points(page)) == 2

    method = page.get_by_role("combobox", name="Method:")
    method.focus()
    page.keyboard.type("in_context")
    page.locator(".interactive-plot svg text", has_text="in_context").wait_for()


def chosen(page) -> str:
    """The list of chosen methods below the chart."""
    return page.locator(".interactive-chart > output").inner_text()


def test_dragging_over_points_lists_them_and_a_double_click_all_again(open_page):
    page = open_page(LEADERBOARD)
    draw(page.locator(".interactive-chart"))
    page.wait_for_function("document.querySelector('.interactive-chart > output').innerText")
    assert chosen(page) == "All 4 methods are chosen."
    point = page.locator(".interactive-plot path[aria-label*='method: npo']")
    point.evaluate("e => e.scrollIntoView({block: 'center', behavior: 'instant'})")
    box = point.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 25, y - 25)
    page.mouse.down()
    page.mouse.move(x + 25, y + 25, steps=4)
    page.mouse.up()
    listed = "document.querySelector('.interactive-chart > output').innerText.startsWith('{}')"
    page.wait_for_function(listed.format("1 of 4"))
    assert "npo (absent)" in chosen(page) and "rome" not in chosen(page)
    faint = page.locator(".interactive-plot path[aria-label*='method: rome']")
    assert float(faint.get_attribute("opacity")) < 0.5
    page.mouse.dblclick(x + 5, y + 5)
    page.wait_for_function(listed.format("All 4"))


def test_sliders_choose_methods_by_keyboard_and_a_hidden_family_is_not_listed(open_page):
    page = open_page(LEADERBOARD)
    draw(page.locator(".interactive-chart"))
    page.get_by_role("slider", name="retention, at least:").focus()
    for _ in range(4):
        page.keyboard.press("PageUp")
    listed = "document.querySelector('.interactive-chart > output').innerText.startsWith('{}')"
    page.wait_for_function(listed.format("2 of 4"))
    assert "rome (absent), memit (absent)" in chosen(page)
    page.get_by_role("checkbox", name="surgery").uncheck()
    page.wait_for_function(listed.format("0 of 2"))


def test_a_fact_is_picked_for_all_methods_by_keyboard(open_page):
    page = open_page(ON_A_FACT)
    draw(page.locator(".interactive-chart"))
    assert page.locator("[aria-label*='method: rome'][aria-label*='find: absent']").count() == 1
    page.get_by_role("combobox", name="Fact:").focus()
    page.keyboard.type("Chad")
    page.locator("[aria-label*='method: npo'][aria-label*='find: not attacked']").wait_for()
    assert page.locator(".interactive-plot path[aria-label*='method: rome']").count() == 1


@pytest.mark.parametrize("name", [LEADERBOARD, FACTS])
def test_a_chart_is_drawn_again_in_the_colours_of_the_theme_and_keeps_its_state(open_page, name):
    page = open_page(name)
    draw(page.locator(".interactive-chart"))
    picker = page.locator(".vega-bindings select")
    last = picker.locator("option").last.get_attribute("value")
    picker.select_option(last)
    label = page.locator(".interactive-plot svg .role-axis-title text").first
    for mode in ("dark", "light"):
        page.emulate_media(color_scheme=mode)
        page.locator(f".interactive-chart[data-drawn={mode}]").wait_for()
        text, ground = label.evaluate(
            "e => [getComputedStyle(e).fill, getComputedStyle(document.body).backgroundColor]"
        )
        light = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in (text, ground)]
        assert abs(light[0] - light[1]) > 380
        assert picker.input_value() == last


def test_another_fact_is_picked_by_keyboard(open_page):
    page = open_page(FACTS)
    draw(page.locator(".interactive-chart"))
    symbols = page.locator(".interactive-plot svg path[aria-roledescription=point]")
    assert "moved: 0;" in symbols.first.get_attribute("aria-label")
    page.get_by_role("combobox", name="Fact:").focus()
    page.keyboard.type("Chad")
    page.wait_for_function(
        "document.querySelector('[aria-roledescription=point]').ariaLabel.includes('moved: 0.2')"
    )


@pytest.mark.parametrize("name", [LEADERBOARD, FACTS, ON_A_FACT, "book/benchmarks.html"])
def test_an_opened_chart_fits_a_phone(open_page, name):
    page = open_page(name, PHONE)
    draw(page.locator(".interactive-chart"))
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_without_scripts_the_leaderboard_is_a_plain_table(browser, built):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto((built / LEADERBOARD).as_uri())
        assert page.locator(".leaderboard tbody tr").count() == len(RANKING)
        assert not page.locator(".leaderboard select").is_visible()
        assert not page.locator(".interactive-chart").is_visible()


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_columns_out_of_sight_are_announced_and_the_first_stays(open_page, screen):
    page = open_page(CHAPTER, screen)
    box = page.locator(".output.text_html:has(table)")
    hint = page.get_by_text("More columns to the right")
    assert hint.first.is_visible()
    assert box.get_attribute("aria-label").startswith("Table: ")
    name, value = page.locator("table.dataframe tbody tr").first.locator("th, td").all()[:2]
    before = [cell.bounding_box()["x"] for cell in (name, value)]
    box.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.output.text_html:has(table)').scrollLeft > 99")
    after = [cell.bounding_box()["x"] for cell in (name, value)]
    assert abs(after[0] - before[0]) <= 2
    assert after[1] < before[1] - 50


def test_a_table_that_fits_has_no_hint(open_page):
    page = open_page(LEADERBOARD)
    assert page.locator(".leaderboard .table-hint").is_hidden()
    assert page.locator(".table-scroll").get_attribute("tabindex") is None


def test_a_figure_opens_in_full_size(open_page):
    page = open_page(CHAPTER, PHONE)
    page.locator("figure a.full-size").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/_images/*.png")


@pytest.mark.parametrize("name", ["book/intro.html", CHAPTER])
def test_a_very_long_name_is_broken_and_the_page_still_fits(open_page, name):
    page = open_page(name, PHONE)
    page.evaluate("""() => document.querySelectorAll('article p :is(strong, em, .pasted-text)')
        .forEach(e => { e.textContent = 'Llanfair'.repeat(40); })""")
    assert "LlanfairLlanfair" in page.inner_text("article")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_search_finds_a_word_from_any_page(open_page):
    page = open_page("book/intro.html")
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.keyboard.press("Control+k")
    page.keyboard.type("residual stream")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=*")
    found = page.locator("#search-results li a", has_text="Glossary").first
    found.wait_for(timeout=10_000)
    found.click()
    page.wait_for_url("**/book/glossary.html*")
    assert errors == []
