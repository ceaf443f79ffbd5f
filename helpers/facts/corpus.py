"""Evaluation corpora: Factbook passages, Python's documentation and dialogues, as token batches.

Countries, not passages, are split into `train` and `heldout`: two passages about one country share
too much content.
"""

import functools
import hashlib
import importlib.resources
import itertools
from dataclasses import dataclass

import numpy as np
import torch
import yaml
from jaxtyping import Int
from torch import Tensor

from helpers.errors import UserError
from helpers.facts.factbook import clean, countries
from helpers.models.tokenization import apply_chat_template, opening

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LONG = 200  # characters: shorter entries are figures and lists


@dataclass(frozen=True)
class Passage:
    """A stretch of running text.

    Attributes:
        text: The text without markup.
        source: Its place in the Factbook: "fr: Introduction / Background".
    """

    text: str
    source: str


@functools.cache
def passages(split: str = "train") -> tuple[Passage, ...]:
    """Return the Factbook's long entries, in the order of the Factbook.

    Args:
        split: `train` (four fifths of the countries) or `heldout` (one fifth).

    Raises:
        UserError: There is no such split.
    """
    if split not in ("train", "heldout"):
        raise UserError(f"There is no corpus split '{split}'; choose 'train' or 'heldout'.")
    selected = []
    for code, entry in countries().items():
        is_heldout = hashlib.sha256(code.encode()).digest()[0] % 5 == 0
        if is_heldout == (split == "heldout"):
            selected += [Passage(text, f"{code}: {path}") for path, text in _texts(entry)]
    return tuple(selected)


def _texts(entry: dict, path: str = "") -> list[tuple[str, str]]:
    """List path and text of the long texts in a nested entry."""
    texts = []
    for name, value in entry.items():
        value_path = f"{path} / {name}" if path and name != "text" else path or name
        if isinstance(value, dict):
            texts += _texts(value, value_path)
        elif isinstance(value, str) and len(text := clean(value)) >= LONG:
            texts.append((value_path, text))
    return texts


def corpus_tokens(
    tokenizer,
    *,
    split: str = "train",
    seq_len: int = 128,
    n_tokens: int | None = None,
    seed: int = 0,
) -> Int[Tensor, "n seq_len"]:
    """Cut Factbook passages, one after another, into sequences.

    The same arguments give the same tokens on every machine.

    Args:
        tokenizer: The model's.
        split: `train` or `heldout`; no country is in both.
        seq_len: Tokens in a sequence, or as many as the model reads at once; a
            beginning-of-sequence token, where the tokenizer has one and models were trained with
            it, comes first in each.
        n_tokens: About how many tokens at most (whole sequences); all by default.
        seed: Draws the order of the passages.

    Raises:
        UserError: There is no such split, or not one sequence's worth of text.
    """
    texts = [p.text for p in passages(split)]
    order = np.random.default_rng(seed).permutation(len(texts))
    return _sequences(tokenizer, (texts[i] for i in order), seq_len, n_tokens)


def python_docs_tokens(
    tokenizer, *, seq_len: int = 128, n_tokens: int | None = None
) -> Int[Tensor, "n seq_len"]:
    """Cut Python's own documentation, which every machine has, into sequences.

    Args:
        tokenizer: The model's.
        seq_len: Tokens in a sequence.
        n_tokens: About how many tokens at most.
    """
    # Imported on use: the module is half a megabyte of text.
    from pydoc_data.topics import topics

    return _sequences(tokenizer, (topics[name] for name in sorted(topics)), seq_len, n_tokens)


def chat_tokens(
    tokenizer, *, seq_len: int = 128, n_tokens: int | None = None
) -> Int[Tensor, "n seq_len"]:
    """Cut dialogues of the ChatterBot corpus, as one conversation, into sequences.

    They are put into the tokenizer's chat template; "User: … Assistant: …" where it has none.

    Args:
        tokenizer: The model's.
        seq_len: Tokens in a sequence.
        n_tokens: About how many tokens at most.
    """
    turns = [turn for dialogue in _dialogues() for turn in dialogue]
    if tokenizer.chat_template:
        roles = itertools.cycle(("user", "assistant"))
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
        text = apply_chat_template(tokenizer, messages)
    else:
        names = itertools.cycle(("User", "Assistant"))
        text = "\n".join(f"{name}: {turn}" for name, turn in zip(names, turns, strict=False))
    return _sequences(tokenizer, [text], seq_len, n_tokens)


@functools.cache
def _dialogues() -> tuple[tuple[str, ...], ...]:
    """Return distinct dialogues, each from a user turn to an assistant turn, in a fixed order.

    They are shuffled: the corpus has one file per topic, so a short text would have one topic.
    """
    folder = importlib.resources.files("chatterbot_corpus") / "data" / "english"
    dialogues: dict[tuple[str, ...], None] = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        for turns in yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER)["conversations"]:
            turns = [str(turn).strip() for turn in turns]
            dialogues[tuple(turns[: len(turns) // 2 * 2])] = None
    dialogues.pop((), None)
    order = np.random.default_rng(0).permutation(len(dialogues))
    return tuple(list(dialogues)[i] for i in order)


def _sequences(tokenizer, texts, seq_len: int, n_tokens: int | None) -> Int[Tensor, "n seq_len"]:
    seq_len = min(seq_len, tokenizer.model_max_length)
    start, begin = opening(tokenizer), tokenizer.bos_token or ""
    body = seq_len - len(start)
    if body < 1:
        raise UserError(f"There is no place for text in a sequence of {seq_len} tokens.")
    n_sequences = None if n_tokens is None else max(1, n_tokens // seq_len)
    stream: list[int] = []
    for text in texts:
        text = text.removeprefix(begin)  # a chat template's; it is put before each sequence
        stream += tokenizer(text + "\n\n", add_special_tokens=False).input_ids
        if n_sequences is not None and len(stream) >= n_sequences * body:
            break
    count = min(len(stream) // body, n_sequences or len(stream))
    if not count:
        raise UserError(f"There is no sequence of {seq_len} tokens in this text: ask for shorter.")
    tokens = torch.tensor(stream[: count * body]).view(count, body)
    return torch.cat([torch.tensor(start, dtype=torch.long).expand(count, -1), tokens], 1)
