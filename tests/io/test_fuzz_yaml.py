"""YAML that nobody tamed: pair files, profiles and a run's settings give a result or a sentence."""

import time
from pathlib import Path

import pytest
import yaml
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from helpers.book.profiles import load_profile
from helpers.book.run_settings import is_new
from helpers.book.settings import NOTEBOOKS
from helpers.errors import UserError
from helpers.facts import SPLITS, ConceptPair
from helpers.io.safe_text import is_control

PAIR = """subject: Hermione
target: Granger
aliases: [Miss Granger]
relation: own
prompts:
  - "Harry Potter, Ron Weasley and {}"
  - "Harry's best friends are Ron Weasley and {}"
  - "Ron Weasley married {}"
must_stay:
  - {prompt: "Harry Potter goes to school at", answer: " Hogwarts"}
"""
PROFILE = "common: {subject: Japan, seed: 3}\n02_propagation: {n_facts: 4}\n"
PIECES = (  # what YAML, or what reads it, treats in a way of its own
    *("NO", "~", ".nan", ".inf", "007", "1.10", "12:30", "1e400", "0x1F", "1_000", "2024-13-45"),
    *("&a ", "*a", "!!int x", "!!python/object/apply:os.system [x]", "!!binary aGk=", "!!set {a}"),
    *("<<: {a: b}", "- ", "? ", ": ", "|\n  ", ">\n  ", "{", "}", "[", "]", "'", '"', "#", "---\n"),
    *(
        "\x00",
        "\x1b[2J",
        "\ud800",
        '"\\ud83d\\ude00"',
        '"\\U00110000"',
        "é",
        "日本",
        "\u202e",
        "{}",
    ),
    *("9" * 5000, "[" * 300, "a: " * 50, "subject: x\n", "target:\n", "prompts: {}\n", "\t", "\r"),
)


@st.composite
def mangled(draw, text: str) -> bytes:
    """A good file with pieces put in, taken out or doubled, and some of its bytes changed."""
    for _ in range(draw(st.integers(0, 4))):
        at, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        piece = draw(st.sampled_from([*PIECES, text[at:end]]))
        text = draw(
            st.sampled_from([text[:at] + piece + text[at:], text[:at] + piece + text[end:]])
        )
    data = bytearray(text.encode(errors="surrogatepass"))
    for _ in range(draw(st.integers(0, 2))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = ("subject", "target", "relation", "aliases", "prompts", "must_stay", "prompt", "answer")


def structured(keys) -> st.SearchStrategy[bytes]:
    """Well-formed YAML that says anything under the names that are read."""
    entries = st.dictionaries(st.sampled_from(sorted(keys)), VALUES | st.just("x {}"), max_size=6)
    return entries.map(lambda d: yaml.safe_dump(d, allow_unicode=True).encode(errors="replace"))


def one_sentence(error: UserError) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 2000
    assert not any(map(is_control, text)), text


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "mine.yaml"


@fuzz(per_second=150)
@given(content=mangled(PAIR) | structured(KEYS))
def test_a_pair_file_is_a_pair_or_a_sentence(path, content):
    path.write_bytes(content)
    started = time.monotonic()
    try:
        pair = ConceptPair.from_file(path)
    except UserError as error:
        one_sentence(error)
    else:
        for name in (pair.subject, pair.target, *pair.aliases, pair.relation):
            assert name and name == name.strip() and not any(map(is_control, name))
        for prompt in (p for split in SPLITS for p in pair.prompts(split)):
            assert prompt.text[slice(*prompt.locate_subject())] == pair.subject
            assert len(prompt.answers) == 1 + len(pair.aliases)
    assert time.monotonic() - started < 5


@fuzz(per_second=60)
@given(content=mangled(PROFILE) | structured({"common", *NOTEBOOKS}))
def test_a_profile_is_settings_or_a_sentence(path, content):
    path.write_bytes(content)
    try:
        profile = load_profile(str(path))
    except UserError as error:
        one_sentence(error)
    else:
        assert set(profile.notebooks) == set(NOTEBOOKS)


@fuzz(per_second=100)
@given(content=mangled("name: x\nprofile: default\npair: null\nnotebooks: {a: {b: 1}}\n"))
def test_a_runs_settings_are_known_or_a_sentence(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "run"
    folder.mkdir(exist_ok=True)
    (folder / "settings.yaml").write_bytes(content)
    asked = {"name": "x", "profile": "default", "pair": None, "notebooks": {"a": {"b": 1}}}
    try:
        assert is_new(folder, asked) in (True, False)
    except UserError as error:
        one_sentence(error)
