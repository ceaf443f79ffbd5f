"""Shared by the tests of the book: a small project, a fake run's book built once, a browser."""

import contextlib
from pathlib import Path

import pytest
from fake_book import copy_sources, fake_run
from fake_project import project  # noqa: F401

from helpers.book import build as book
from helpers.book.look import chromium
from helpers.errors import UserError


@pytest.fixture(scope="session")
def book_sources(tmp_path_factory) -> Path:
    """A copy of what the fake run's book is built from, that nobody edits."""
    return copy_sources(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="session")
def built(book_sources, tmp_path_factory) -> Path:
    """The HTML folder of a fake run's book.

    Pages of the whole library are in the book of `test_notebooks.py`.
    """
    run = fake_run(tmp_path_factory.mktemp("runs") / "smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "ROOT", book_sources)
        return book.build(run).parent


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium; while it is open, nothing else can run an event loop here."""
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(chromium())
        except UserError as error:
            pytest.skip(str(error))
        yield opened
