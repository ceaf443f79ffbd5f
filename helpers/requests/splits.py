"""Splits of documents by their hashes: the same on every machine, and no document on two sides."""

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "dev", "heldout")
FIFTHS = ("train", "train", "train", "dev", "heldout")  # three parts to forget by, one of the rest


def split_of(unit: str) -> str:
    """Return the split of a unit of text: a dialogue's first turn, a source file.

    What is alike belongs to one unit, so that no text of one split tells of another.
    """
    return FIFTHS[int.from_bytes(_digest(unit)[-2:], "big") % len(FIFTHS)]


def mixed(texts: Iterable[str]) -> list[str]:
    """Return distinct texts in the order of their hashes: topics and files mixed."""
    return sorted(set(texts), key=_digest)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
