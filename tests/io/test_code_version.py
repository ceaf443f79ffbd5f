"""Hashes of code: from the cache they are what they are without it."""

from pathlib import Path

import pytest

from helpers.io import code_version
from helpers.io.code_version import module_hash

CODE = '"""Add."""\n\nfrom helpers.errors import UserError\n\n\ndef add(a, b):\n    return a + b\n'


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "module.py"
    path.write_text(CODE)
    return path


def fresh_hash(path):
    """Hash as another process would: it remembers nothing."""
    code_version._summary.cache_clear()
    return module_hash(path)


def test_the_cache_gives_the_hash_that_the_code_has(module, tmp_path):
    first = fresh_hash(module)
    (entry,) = (tmp_path / "cache" / "code").glob("*.json")
    assert fresh_hash(module) == first
    entry.write_text('{"hash": ')  # a process was killed on an odd file system
    assert fresh_hash(module) == first
    entry.write_text('{"hash": "0", "other": 1}')
    assert fresh_hash(module) == first


def test_code_counts_and_words_do_not(module):
    first = fresh_hash(module)
    module.write_text(CODE.replace('"""Add."""', '"""Add two numbers."""  # plainly'))
    assert fresh_hash(module) == first
    module.write_text(CODE.replace("a + b", "a - b"))
    assert fresh_hash(module) != first


def test_a_cache_that_cannot_be_written_costs_time_alone(module, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNLEARNING_CACHE", str(tmp_path / "file"))
    assert len(fresh_hash(module)) == 16


def test_without_a_folder_for_the_cache_the_hash_is_the_same(module, monkeypatch):
    first = fresh_hash(module)
    monkeypatch.delenv("UNLEARNING_CACHE")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert fresh_hash(module) == first
