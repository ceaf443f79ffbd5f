"""What a built book must satisfy before it is published: light pages that need no network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MAX_PAGE_MB = 3.0


def check(html_folder: str | Path) -> list[str]:
    """What is wrong with a built book: pages that load from a network, and pages over 3 MB.

    A page's weight is its HTML and the images it shows; scripts and styles shared by all pages are
    not counted.
    """
    problems = []
    html_folder = Path(html_folder)
    for path in sorted(html_folder.rglob("*.html")):
        name, page = path.relative_to(html_folder), _Loaded()
        if name.parts[0] == "_static":  # the theme's templates
            continue
        page.feed(path.read_text())
        remote = [url for url in page.urls if urlsplit(url).netloc]
        problems += [f"{name} loads {url} from the network" for url in remote]
        images = {(path.parent / unquote(urlsplit(url).path)).resolve() for url in page.images}
        sizes = [image.stat().st_size for image in images if image.is_file()]
        megabytes = (path.stat().st_size + sum(sizes)) / 1e6
        if megabytes > MAX_PAGE_MB:
            problems.append(f"{name} weighs {megabytes:.1f} MB, more than {MAX_PAGE_MB:.0f} MB")
    for path in sorted(html_folder.rglob("*.css")):
        if re.search(r"(@import\s+|url\(\s*)[\"']?(https?:)?//", path.read_text()):
            problems.append(f"{path.relative_to(html_folder)} loads from the network")
    return problems


class _Loaded(HTMLParser):
    """Collects what a page loads by itself: `urls` of any kind, `images` among them."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video", "embed") and values.get("src"):
            self.urls.append(values["src"])
            if tag == "img":
                self.images.append(values["src"])
        passive = {"canonical", "next", "prev", "search", "index", "author", "license"}
        if tag == "link" and not passive & set(values.get("rel", "").lower().split()):
            self.urls.append(values.get("href", ""))
