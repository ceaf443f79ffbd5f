"""Pictures of the key pages: of each page, mode and width one, of a book that is there."""

import struct

import pytest

from helpers.book import look


@pytest.mark.slow
def test_each_key_page_has_a_picture_in_both_modes_and_widths(built, tmp_path):
    try:
        pictures = look.take_pictures(built, tmp_path)
    except look.UserError as error:
        pytest.skip(str(error))
    assert len(set(pictures)) == len(look.PAGES) * 4
    for path in pictures:
        width = struct.unpack(">I", path.read_bytes()[16:20])[0]
        assert path.stem.endswith(f"_{width}")
    intro = {mode: (tmp_path / f"intro_{mode}_390.png").read_bytes() for mode in look.MODES}
    assert intro["light"] != intro["dark"]


def test_without_a_book_or_a_browser_one_sentence_says_what_to_do(tmp_path, monkeypatch, capsys):
    assert look.main([str(tmp_path)]) == 1
    assert "run make book first" in capsys.readouterr().err
    page = tmp_path / "book" / "_build" / "html" / look.PAGES[0]
    page.parent.mkdir(parents=True)
    page.write_text("<p>here</p>")
    monkeypatch.setattr(look.shutil, "which", lambda name: None)
    assert look.main([str(tmp_path)]) == 1
    assert "apt install chromium" in capsys.readouterr().err
