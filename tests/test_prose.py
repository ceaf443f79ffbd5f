"""Prose names what exists: paths, modules and objects in the README, the book and the chapters."""

import importlib
import json
import re

import pytest

from helpers.book.settings import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PATH = re.compile(r"`((?:helpers|tests|book|benchmarks|profiles|notebooks)/[\w./-]*)`")
DOTTED = re.compile(r"[`{}]\.?(helpers(?:\.\w+)+)`")
EXAMPLE = re.compile(r"Say,\s+`([\w./]+)`:")  # a file that the reader is shown how to write
MAX_WORDS = 1800
NO_WORDS = re.compile(r"\$\$.*?\$\$|\$[^$]+\$|!\[.*?\]\(.*?\)", re.DOTALL)  # formulas and pictures
OTHER_WORDS = re.compile(r"\bstrangers?\b|never-known|\bunlearnings\b", re.IGNORECASE)


def prose(path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def resolves(name: str) -> bool:
    """True if a dotted name is a module of `helpers`, or leads from one to an object."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            if not hasattr(target, attribute):
                return False
            target = getattr(target, attribute)
        return True
    return False


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_what_prose_names_exists(page):
    text = prose(page)
    paths = set(PATH.findall(text)) - set(EXAMPLE.findall(text))
    assert [p for p in sorted(paths) if not (ROOT / p).exists()] == []
    assert [name for name in sorted(set(DOTTED.findall(text))) if not resolves(name)] == []


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_one_idea_has_one_word(page):
    assert OTHER_WORDS.findall(prose(page)) == []


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=lambda path: path.name)
def test_a_chapter_can_be_read_in_one_sitting(chapter):
    assert len(NO_WORDS.sub(" ", prose(chapter)).split()) <= MAX_WORDS


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_no_line_of_prose_is_lost_as_a_comment(page):
    assert re.findall("^%.*", prose(page), re.MULTILINE) == []  # MyST drops it
