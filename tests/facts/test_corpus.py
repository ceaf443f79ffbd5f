"""Running text: the same everywhere, and never the same country on both sides."""

import re

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from helpers.errors import UserError
from helpers.facts.corpus import LONG, chat_tokens, corpus_tokens, passages, python_docs_tokens


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, so that every text has an encoding that can be read back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "<s>"])}
    bytes_ = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, bos_token="<s>")


@pytest.fixture(scope="module")
def beginning(tokenizer) -> PreTrainedTokenizerFast:
    """The same with a tokenizer that begins every text with its special token."""
    from tokenizers.processors import TemplateProcessing

    whole = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    mark = ("<s>", tokenizer.bos_token_id)
    whole.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[mark])
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>")


def test_no_country_is_in_both_splits():
    countries = {s: {p.source.split(":")[0] for p in passages(s)} for s in ("train", "heldout")}
    assert not countries["train"] & countries["heldout"]
    share = len(countries["heldout"]) / sum(map(len, countries.values()))
    assert 0.12 < share < 0.28  # one fifth


def test_passages_are_long_and_plain():
    for passage in passages("train"):
        assert len(passage.text) >= LONG
        assert not any(mark in passage.text for mark in ("<p>", "<br", "&nbsp;", "  "))
    assert sum(len(p.text) for p in passages("train")) > 1_000_000


def test_sequences_are_the_passages_one_after_another(tokenizer):
    tokens = corpus_tokens(tokenizer, split="heldout", seq_len=64, n_tokens=64 * 50, seed=3)
    assert tokens.shape == (50, 64)
    text = tokenizer.decode(tokens.flatten(), clean_up_tokenization_spaces=False)
    first = text.split("\n\n")[0]
    assert first in {p.text for p in passages("heldout")}


def test_same_arguments_give_the_same_tokens_and_another_seed_others(tokenizer):
    arguments = {"seq_len": 32, "n_tokens": 640}
    once = corpus_tokens(tokenizer, **arguments)
    assert torch.equal(once, corpus_tokens(tokenizer, **arguments))
    assert not torch.equal(once, corpus_tokens(tokenizer, **arguments, seed=1))
    assert not torch.equal(once, corpus_tokens(tokenizer, **arguments, split="heldout"))


@pytest.mark.parametrize(("n_tokens", "sequences"), [(640, 20), (650, 20), (1, 1)])
def test_whole_sequences_of_at_most_the_tokens_asked_for(tokenizer, n_tokens, sequences):
    for text in (corpus_tokens, python_docs_tokens, chat_tokens):
        assert text(tokenizer, seq_len=32, n_tokens=n_tokens).shape == (sequences, 32)


def test_a_beginning_of_sequence_token_only_where_models_saw_one(tokenizer, beginning):
    plain = corpus_tokens(tokenizer, seq_len=32, n_tokens=320)
    begun = corpus_tokens(beginning, seq_len=33, n_tokens=330)
    assert (begun[:, 0] == beginning.bos_token_id).all()
    assert torch.equal(begun[:, 1:], plain)
    assert not (plain == tokenizer.bos_token_id).any()


def test_sequences_are_no_longer_than_what_the_model_reads(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", 20)
    for text in (corpus_tokens, python_docs_tokens, chat_tokens):
        assert text(tokenizer, seq_len=32, n_tokens=640).shape == (32, 20)
    monkeypatch.setattr(tokenizer, "model_max_length", 0)
    with pytest.raises(UserError, match="no place for text in a sequence of 0 tokens"):
        corpus_tokens(tokenizer)


def test_second_source_is_other_text_and_always_the_same(tokenizer):
    tokens = python_docs_tokens(tokenizer, seq_len=64, n_tokens=64 * 40)
    assert torch.equal(tokens, python_docs_tokens(tokenizer, seq_len=64, n_tokens=64 * 40))
    text = tokenizer.decode(tokens.flatten(), clean_up_tokenization_spaces=False)
    assert "statement" in text
    first = text.split("\n\n")[0]
    assert not any(first in p.text for p in passages("train"))


def test_dialogues_take_turns_in_the_chat_template_or_by_name(tokenizer, beginning, monkeypatch):
    plain = tokenizer.decode(chat_tokens(tokenizer, seq_len=64, n_tokens=6400).flatten())
    speakers = re.findall(r"(?m)^(User|Assistant): ", plain)
    assert len(speakers) > 40 and speakers[::2] == ["User"] * len(speakers[::2])
    assert speakers[1::2] == ["Assistant"] * len(speakers[1::2])

    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(beginning, "chat_template", template)
    tokens = chat_tokens(beginning, seq_len=64, n_tokens=640)
    assert (tokens == beginning.bos_token_id).sum() == len(tokens)  # the template's is not added
    text = beginning.decode(tokens[0, 1:])
    assert text.startswith("[user] ") and "[assistant]" in text


def test_bad_input_is_told_in_one_sentence(tokenizer):
    with pytest.raises(UserError, match="no corpus split 'test'; choose 'train' or 'heldout'"):
        corpus_tokens(tokenizer, split="test")
    with pytest.raises(UserError, match="no sequence of 99000000 tokens"):
        python_docs_tokens(tokenizer, seq_len=99_000_000)
