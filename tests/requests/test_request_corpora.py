"""Corpora: packing, answers, floors, and reading no further than needed."""

import itertools

import pytest
import torch

from helpers.errors import UserError
from helpers.models.tokenization import opening
from helpers.requests import Corpus, Document


def test_running_text_is_packed_without_loss(tiny_model):
    model = tiny_model()
    corpus = Corpus.of_texts("words", ["w5 w6 w7", "w8 w9", "w10 w11 w12 w13 w14"])
    start = opening(model.tokenizer)
    examples = corpus.examples(model, n_tokens=1000, seq_len=4 + len(start))
    assert all(tuple(e.ids[: len(start)]) == tuple(start) for e in examples)
    stream = [i for e in examples for i in e.ids[len(start) :]]
    words = "w5 w6 w7 w8 w9 w10 w11 w12 w13 w14"
    assert model.tokenizer.decode(stream).split() == words.split()
    assert [len(e.ids) for e in examples[:-1]] == [4 + len(start)] * (len(examples) - 1)
    assert all(e.labels_start == 1 for e in examples)


def test_of_a_document_with_a_prompt_the_answer_counts(tiny_model):
    model = tiny_model()
    corpus = Corpus("answers", lambda: [Document(" w9 w10", "w5 w6 w7")])
    (example,) = corpus.examples(model, n_tokens=100)
    assert model.tokenizer.decode(example.ids[example.labels_start :]).split() == ["w9", "w10"]


def test_an_endless_corpus_is_read_as_far_as_needed(tiny_model):
    read = itertools.count()

    def endless():
        while True:
            next(read)
            yield Document("w5 w6 w7 w8")

    model = tiny_model()
    examples = Corpus("endless", endless).examples(model, n_tokens=40, seq_len=10)
    assert 30 <= sum(len(e.ids) for e in examples) <= 50
    assert next(read) < 30


def test_shuffling_keeps_each_documents_words_and_is_the_same_each_time():
    corpus = Corpus.of_texts(
        "words", [" ".join(f"a{i}" for i in range(30)), "b0 b1 b2 b3 b4 b5 b6"]
    )
    once, again = list(corpus.shuffled(1)), list(corpus.shuffled(1))
    assert once == again and once != list(corpus.shuffled(2))
    for before, after in zip(corpus, once, strict=True):
        assert sorted(before.text.split()) == sorted(after.text.split())
        assert before.text != after.text


def test_answers_are_exchanged_and_none_stays_at_its_prompt():
    documents = [Document(f" {n}", f"number {n}:") for n in range(150)]
    corpus = Corpus("answers", lambda: documents)
    exchanged = list(corpus.shuffled(3))
    assert [d.prompt for d in exchanged] == [d.prompt for d in documents]
    assert sorted(d.text for d in exchanged) == sorted(d.text for d in documents)
    assert all(a.text != b.text for a, b in zip(documents, exchanged, strict=True))
    assert exchanged == list(corpus.shuffled(3))


def test_fingerprints_tell_contents_apart():
    a, b = Corpus.of_texts("x", ["one"]), Corpus.of_texts("x", ["two"])
    assert a.fingerprint() == Corpus.of_texts("x", ["one"]).fingerprint() != b.fingerprint()


@pytest.mark.parametrize("texts", [[], [""]])
def test_a_corpus_without_text_is_refused(tiny_model, texts):
    model = tiny_model("gpt2")
    model.tokenizer.bos_token = None
    with pytest.raises(UserError, match="no text in the corpus 'nothing'"):
        Corpus.of_texts("nothing", texts).examples(model, n_tokens=10)


def test_batches_of_examples_hold_their_tokens(tiny_model):
    from helpers.training.examples import collate

    model = tiny_model()
    examples = Corpus.of_texts("words", ["w5 w6 w7 w8 w9"]).examples(model, n_tokens=100)
    batch = collate(examples)
    labels = [i for e in examples for i in e.ids[1:]]
    assert torch.equal(batch.label_ids, torch.tensor(labels))
