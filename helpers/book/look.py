"""Pictures of a built book's key pages for people to look at: light and dark, desk and phone.

    python -m helpers.book.look runs/default

`make look RUNS="runs/default"` calls this. The pictures are kept in the run's folder `look`.
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ViewportSize, sync_playwright

from helpers.book.progress import echo
from helpers.errors import UserError
from helpers.io.safe_text import visible

PAGES = (
    "book/intro.html",
    "notebooks/06_edit_mlps.html",
    "notebooks/09_verify.html",
    "notebooks/10_leaderboard.html",
)
MODES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
DESK = ViewportSize(width=1400, height=900)  # pixels
PHONE = ViewportSize(width=390, height=844)
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Open the system's Chromium; while it is open, nothing else can run an event loop here.

    Raises:
        UserError: Chromium is not installed.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise UserError("Chromium is not installed: on Debian and Ubuntu, apt install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


def take_pictures(html: Path, folder: Path) -> list[Path]:
    """Write a picture of each of `PAGES`, whole, in each mode and width.

    Args:
        html: The built book.
        folder: Where the pictures are written, as `<page>_<mode>_<width>.png`.

    Returns:
        The pictures; pages that the book lacks have none.

    Raises:
        UserError: There is no such book, or Chromium is not installed.
    """
    pages = [html / name for name in PAGES if (html / name).exists()]
    if not pages:
        raise UserError(f"There is no book in {visible(html)}: run make book first.")
    pictures = []
    with chromium() as browser:
        folder.mkdir(parents=True, exist_ok=True)
        for mode in MODES:
            for screen in (DESK, PHONE):
                with browser.new_context(viewport=screen, color_scheme=mode) as context:
                    page = context.new_page()
                    for path in pages:
                        page.goto(path.as_uri())
                        page.evaluate(SETTLED)
                        pictures.append(folder / f"{path.stem}_{mode}_{screen['width']}.png")
                        page.screenshot(path=pictures[-1], full_page=True)
    return pictures


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with a book")
    try:
        for run in parser.parse_args(arguments).runs:
            folder = run.resolve() / "look"
            pictures = take_pictures(run.resolve() / "book" / "_build" / "html", folder)
            echo(f"{len(pictures)} pictures: {visible(folder)}")
    except UserError as error:
        echo(str(error), sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
