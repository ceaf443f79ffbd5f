"""Texts as tokens: the beginning token once, nothing after the text, whatever a tokenizer adds."""

import shutil

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from helpers.errors import UserError
from helpers.facts import Prompt, subject_span
from helpers.facts.corpus import chat_tokens, corpus_tokens
from helpers.forward import scoring
from helpers.forward.generation import greedy
from helpers.models import load_model
from helpers.models.tokenization import (
    apply_chat_template,
    distinct,
    encode,
    encode_with_offsets,
    opening,
)
from helpers.tracing.text_activations import text_activations

MARKS = [("<s>", 2), ("</s>", 3)]


def adding(single: str):
    """A tokenizer that puts marks around every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=MARKS
    )
    return tokenizer


@pytest.fixture
def saved(tiny_folder, tmp_path):
    """`saved(single)` -> the same tiny model, loaded with a tokenizer that adds marks."""
    plain = tiny_folder("llama")

    def make(single: str):
        folder = shutil.copytree(plain, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        adding(single).save_pretrained(folder)
        return load_model(str(folder))

    return make


@pytest.mark.parametrize(
    ("single", "before"),
    [
        ("$A", []),
        ("$A </s>", []),
        ("<s> $A", [2]),
        ("<s> $A </s>", [2]),
        ("<s> <s> $A </s>", [2, 2]),
    ],
)
def test_what_comes_before_a_text_stays_and_what_comes_after_goes(single, before):
    tokenizer = adding(single)
    assert opening(tokenizer) == before
    assert encode(tokenizer, "w1 w2") == [*before, 5, 6]
    assert encode(tokenizer, "<s> w1 w2") == [2, 5, 6]  # as chat templates begin
    ids, places = encode_with_offsets(tokenizer, "w1 w2")
    assert ids == [*before, 5, 6]
    assert places == [(0, 0)] * len(before) + [(0, 2), (3, 5)]


@pytest.mark.parametrize("begin", ["", "<s> "])
def test_a_tokenizer_that_ends_texts_changes_no_number(saved, begin):
    plain, ending = saved(f"{begin}$A"), saved(f"{begin}$A </s>")
    assert ending.tokenizer("w1").input_ids[-1] == 3
    prompts, answers = ["w1 w2 w3", "w4"], [" w5 w6", " w7"]
    asked = [Prompt(p, subject="w1", answers=(a,)) for p, a in zip(prompts, answers, strict=True)]

    def numbers(model):
        found = text_activations(model, ["w1 w2 w3 w4"], [(0, 1)], names=["w3"])
        return [
            scoring.answer_logprobs(model, prompts, answers),
            scoring.next_token_logprobs(model, prompts).numpy(),
            *scoring.answer_scores(model, asked),
            found.activations,
            found.mentions,
            corpus_tokens(model.tokenizer, seq_len=16, n_tokens=64).numpy(),
            chat_tokens(model.tokenizer, seq_len=16, n_tokens=64).numpy(),
        ]

    for a, b in zip(numbers(plain), numbers(ending), strict=True):
        assert np.array_equal(a, b)
    assert greedy(plain, prompts) == greedy(ending, prompts)
    spans = [subject_span(asked[0], m.tokenizer) for m in (plain, ending)]
    assert spans[0] == spans[1]


def test_of_answers_that_begin_with_anothers_tokens_only_the_other_counts():
    assert distinct([[1, 2], [1], [1, 2], [3, 1], [1, 3]]) == [False, True, False, True, False]
    assert distinct([[1, 2], [1, 2]]) == [True, False]
    assert distinct([]) == []


def test_a_chat_template_that_cannot_be_filled_in_is_told():
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="no chat template"):
        apply_chat_template(tokenizer, [{"role": "user", "content": "w1"}])
    for template in ("{{ messages.a.b.c }}", "{% for", "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="cannot be filled in"):
            apply_chat_template(tokenizer, [{"role": "user", "content": "w1"}])


def without(*marks: str):
    """The tiny tokenizer without some of its special tokens."""
    tokenizer = tiny_tokenizer()
    for mark in marks:
        setattr(tokenizer, f"{mark}_token", None)
    return tokenizer


def outside():
    """A tokenizer whose padding was added without room in the embedding."""
    tokenizer = without("pad")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 64
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [outside(), without("pad"), without("pad", "eos"), without("pad", "eos", "bos", "unk")],
    ids=["outside", "no pad", "no end", "nothing"],
)
def test_any_token_serves_for_padding(tiny_folder, tmp_path, tokenizer):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    tokenizer.save_pretrained(folder)
    model = load_model(str(folder))
    prompts = ["w1 w2", "w3 w4 w5 w6", "w7"]
    alone = [greedy(model, [p])[0] for p in prompts]
    assert greedy(model, prompts) == alone
    pad = model.tokenizer.pad_token_id
    assert pad is None or pad < 64
    assert torch.isfinite(torch.tensor(scoring.answer_logprobs(model, prompts, [" w1"] * 3))).all()


def test_a_token_without_an_embedding_is_told(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["quark"])
    tokenizer.save_pretrained(folder)
    model = load_model(str(folder))
    with pytest.raises(UserError, match="the token 'quark', for which the model has no embedding"):
        scoring.answer_logprobs(model, ["w1 quark"], [" w2"])
