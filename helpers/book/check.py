"""Checks of a built book before it is published: light pages, no network, no foreign scripts.

Pages show text of users, files and models, which is escaped where it enters a page. These checks
look at the built pages, so that a forgotten place does not reach a reader.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MAX_PAGE_MB = 3.0
DATA = ("application/json", "text/x-")  # types of script elements that hold data
ACTIVE = ("javascript:", "vbscript:", "data:text/html")


def check(html_folder: str | Path) -> list[str]:
    """List the problems of a built book.

    A page must not load from a network, weigh over 3 MB, or run a script in its content (the theme
    around it may). Its weight is that of its HTML and images; shared scripts and styles are not
    counted.

    Returns:
        One sentence a problem, without a full stop.
    """
    problems = []
    html_folder = Path(html_folder)
    for path in sorted(html_folder.rglob("*.html")):
        name, page = path.relative_to(html_folder), _Page()
        if name.parts[0] == "_static":  # the theme's templates
            continue
        page.feed(path.read_text())
        remote = [url for url in page.urls if urlsplit(url).netloc]
        problems += [f"{name} loads {url} from the network" for url in remote]
        problems += [f"{name} holds {element}" for element in page.active]
        images = {(path.parent / unquote(urlsplit(url).path)).resolve() for url in page.images}
        sizes = [image.stat().st_size for image in images if image.is_file()]
        megabytes = (path.stat().st_size + sum(sizes)) / 1e6
        if megabytes > MAX_PAGE_MB:
            problems.append(f"{name} weighs {megabytes:.1f} MB, more than {MAX_PAGE_MB:.0f} MB")
    for path in sorted(html_folder.rglob("*.css")):
        if re.search(r"(@import\s+|url\(\s*)[\"']?(https?:)?//", path.read_text()):
            problems.append(f"{path.relative_to(html_folder)} loads from the network")
    return problems


class _Page(HTMLParser):
    """A parser that collects what a page loads, and what its content would run.

    Attributes:
        urls: Addresses that the page loads.
        images: The addresses of images among them.
        active: Foreign scripts, event handlers and addresses that run code, in words.
    """

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.images: list[str] = []
        self.active: list[str] = []
        self._articles = 0  # depth of nested elements of content
        self._script: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video", "embed") and values.get("src"):
            self.urls.append(values["src"])
            if tag == "img":
                self.images.append(values["src"])
        passive = {"canonical", "next", "prev", "search", "index", "author", "license"}
        if tag == "link" and not passive & set(values.get("rel", "").lower().split()):
            self.urls.append(values.get("href", ""))
        self._articles += tag == "article"
        if self._articles:
            self._collect_active(tag, values)

    def _collect_active(self, tag: str, values: dict[str, str]) -> None:
        self.active += [f"a handler, {name}" for name in values if name.startswith("on")]
        self.active += [
            f"an address that runs code, {value[:40]}"
            for name, value in values.items()
            if name in ("href", "src", "xlink:href", "action", "formaction", "srcdoc")
            and (name == "srcdoc" or _plain(value).startswith(ACTIVE))
        ]
        if tag in ("iframe", "object", "embed", "base", "form"):
            self.active.append(f"an element <{tag}>")
        if tag == "script" and not values.get("type", "").startswith(DATA):
            self._script = values.get("src", "")
            if self._script:
                self.active.append(f"a script, {self._script}")

    def handle_data(self, data: str) -> None:
        if self._script is not None and data.strip():
            self.active.append(f"a script, {data.strip()[:40]}")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None
        self._articles -= tag == "article" and self._articles > 0


def _plain(address: str) -> str:
    """Normalise an address as a browser does: no control characters, no space, small letters."""
    return re.sub(r"[\x00-\x20]", "", address).lower()
