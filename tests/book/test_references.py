"""The bibliography has the works that the code leans on, and pages cite what it has."""

import re
from itertools import chain

import pytest

from helpers.book.method_sources import SOURCES
from helpers.book.registered import registered_methods
from helpers.book.settings import ROOT

BIB = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
KEYS = re.findall(r"^@\w+\{(\w+),$", BIB, re.MULTILINE)
NOT_CONFIRMED = {("Deepak", 2025)}  # we could not find the paper again
NO_WORKS = {("Oran", 2022)}  # examples of text
NAME = r"[A-ZŁ][\w’-]+"
LEANT_ON = re.compile(
    rf"({NAME}(?:,? {NAME})*(?:,? (?:&|and) {NAME})?)(?: et al\.)?,? \(?((?:18|19|20)\d\d)\b"
)


def surnames(entry: str) -> list[str]:
    authors = re.search(r"author\s*=\s*\{(.*)\}", entry)[1]
    plain = authors.replace(r"{\L}", "Ł").replace(r"{\'e}", "é").replace("{", "").replace("}", "")
    return [name.split(",")[0].removeprefix("\\L").strip() for name in plain.split(" and ")]


def entries() -> list[tuple[list[str], int]]:
    parts = re.split(r"^(?=@\w+\{)", BIB, flags=re.MULTILINE)[1:]
    years = [re.search(r"year\s*=\s*\{?(\d+)", part) for part in parts]
    return [(surnames(p), int(year[1])) for p, year in zip(parts, years, strict=True) if year]


def test_every_work_that_the_code_names_is_in_the_bibliography():
    """By an author and the year; of a preprint and its publication either year will do."""
    known = {(name, year + n) for names, year in entries() for name in names for n in (-1, 0, 1)}
    known |= NOT_CONFIRMED | NO_WORKS
    missing = set()
    for path in sorted((ROOT / "helpers").rglob("*.py")):
        text = re.sub(r"\s+#?\s*", " ", path.read_text(encoding="utf-8"))
        for names, year in LEANT_ON.findall(text):
            if not any((name, int(year)) in known for name in re.findall(NAME, names)):
                missing.add((path.name, names, year))
    assert not missing


def test_keys_are_unique_and_pages_cite_none_that_is_missing():
    assert len(KEYS) == len(set(KEYS))
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    cited = re.findall(
        r"\{cite(?::\w)?\}`([^`]+)`", "".join(p.read_text(encoding="utf-8") for p in pages)
    )
    keys = {key.strip() for keys in cited for key in keys.split(",")}
    assert keys <= set(KEYS)
    assert set(KEYS) - keys <= set(chain(*SOURCES.values()))  # those are on the page of methods


def test_papers_of_methods_are_in_the_bibliography():
    names = {name.name for name, _, _ in registered_methods()}
    assert set(SOURCES) <= names
    assert set(chain(*SOURCES.values())) <= set(KEYS)


@pytest.mark.parametrize("name", sorted({m[0].name for m in registered_methods()}))
def test_a_method_whose_docstring_names_a_paper_has_it_on_its_page(name):
    path, function = next((p, f) for n, p, f in registered_methods() if n.name == name)
    docstring = function.body[0].value.value
    if LEANT_ON.search(docstring) and name not in ("random_rows", "random_neurons"):
        assert name in SOURCES, path
