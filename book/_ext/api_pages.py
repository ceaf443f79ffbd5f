"""Sphinx extension for the API pages: docstrings in plain style, read fast, no dead edit links.

Docstrings are written as in Markdown: single backquotes become literals, also before a letter
(`key`s), and bars around a word and a star alone stay what they are, where reStructuredText would
warn. And sphinx-autoapi's parser is kept from reading the sources of torch and other packages,
which takes most of a build and adds nothing to the pages.

A page names the packages that it is in, and links to its modules. It stands in no table of
contents: the sidebar of every page would be made from those of all modules, which takes half of a
build.
"""

import re
import sys

from astroid.exceptions import AstroidImportError
from astroid.manager import AstroidManager

SPAN = re.compile(r"(?<![`:\\\w])(`+)(?!`)(.+?)(?<!`)\1(?![`_])(?=(\w)?)")  # a Markdown code span
BARS = re.compile(r"\|(\S[^|`\n]*)\|")
STAR = re.compile(r"(?<![\w*\\])\*(?=[,)])")  # "(model, *, seed)", not "*emphasis*"
TOCTREE = re.compile(
    r"^\.\. toctree::\n(?:[ \t]+:.*\n)*((?:[ \t]*\n|[ \t]+/api/.*\n)+)", re.MULTILINE
)
READ = {"helpers", *sys.stdlib_module_names}


def as_literals(line: str) -> str:
    """Turn code spans of Markdown into reStructuredText literals; escape bars and lone stars."""
    done, text = 0, []
    for span in SPAN.finditer(line):
        text += [_plain(line[done : span.start()]), f"``{span[2].strip()}``"]
        text += ["\\ "] if span[3] else []
        done = span.end()
    return "".join(text) + _plain(line[done:])


def _plain(text: str) -> str:
    return STAR.sub(r"\*", BARS.sub(r"\|\1\|", text))


def process(app, what, name, obj, options, lines: list[str]) -> None:
    if what == "attribute":  # its class describes it; what is found here is a base's, as str.format
        lines.clear()
    lines[:] = [line if line.lstrip().startswith(">>>") else as_literals(line) for line in lines]


def read_only_here(app) -> None:
    follow = AstroidManager.ast_from_module_name

    def from_module_name(manager, modname, *args, **options):
        if modname and modname.partition(".")[0] not in READ:
            raise AstroidImportError(f"{modname} is not read", modname=modname)
        return follow(manager, modname, *args, **options)

    AstroidManager.ast_from_module_name = from_module_name


def link_by_hand(app, docname, source) -> None:
    if not docname.startswith("api/"):
        return
    packages = docname.split("/")[1:-2]
    path = [
        f":doc:`{name} </api/{'/'.join(packages[: depth + 1])}/index>`"
        for depth, name in enumerate(packages)
    ]
    above = " › ".join([":doc:`The library </book/api>`", *path])
    source[0] = f":orphan:\n\n{above}\n\n" + TOCTREE.sub(_list_of_pages, source[0])


def _list_of_pages(toctree: re.Match) -> str:
    pages = [page for page in toctree[1].split() if page]
    return "".join(f"* :doc:`{page.split('/')[-2]} <{page}>`\n" for page in pages) + "\n"


def no_edit_link(app, pagename, templatename, context, doctree) -> None:
    if pagename.startswith("api/"):  # made here: there is no such file to edit or download
        context["page_source_suffix"] = ""


def setup(app) -> dict:
    app.connect("builder-inited", read_only_here, priority=100)  # before autoapi's 500
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon's 500
    app.connect("source-read", link_by_hand)
    app.connect("html-page-context", no_edit_link, priority=100)
    return {"parallel_read_safe": True}
