"""The built book in a real browser: by mouse, by keyboard, on a phone, in the dark."""

from pathlib import Path

import pytest
from fake_book import RANKING

pytestmark = pytest.mark.slow

DESK, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
LEADERBOARD, CHAPTER = "notebooks/10_leaderboard.html", "notebooks/01_keys_and_values.html"
KINDS = {  # one page a kind: axe takes seconds on each
    "landing page": "book/intro.html",
    "prose and code": "book/how_to_rerun.html",
    "Markdown tables": "book/status.html",
    "chapter": CHAPTER,
    "latents": "notebooks/04_sparse_autoencoders.html",
    "leaderboard": LEADERBOARD,
    "library": "api/helpers/errors/index.html",
    "references": "book/references.html",
    "search": "search.html",
}
GRAVE = ("serious", "critical")
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


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
    page.get_by_label("family").focus()
    reached = []
    for _ in RANKING:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent").split()[0].rstrip("↕"))
    assert reached == list(RANKING)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_the_leaderboard_shows_one_family(open_page, by):
    page = open_page(LEADERBOARD)
    family = page.get_by_label("family")
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


def test_without_scripts_the_leaderboard_is_a_plain_table(browser, built):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto((built / LEADERBOARD).as_uri())
        assert page.locator(".leaderboard tbody tr").count() == len(RANKING)
        assert not page.locator(".leaderboard select").is_visible()


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
